"""Tokens per second of a 70B model over 1 to 8 devices, 1 to 10 texts at once: simulated from what one H100 measured. Configs only.

    python benchmarks/several.py > table.md             # --rows 16 32 64: more texts; --plan: what each plan says

Each device has 64 GB, as a half of SpecMemo's MI250 has. By blocks a pass is walked Linear by Linear: every device multiplies by
its own blocks once they are there, and the next Linear begins when the last device is done and its outputs have come to the
first. In stages it is walked piece by piece: each goes through the layers of one device after the other, behind the one before
it; or groups of texts go through the stages side by side, each with its draft levels and its pass."""

from __future__ import annotations

import argparse
import heapq
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.plan.placement import Plan

MACHINE = "cuda:memory=64GB,link=53GB/s,host=256GB"
DEVICES, ROWS = (1, 2, 4, 8), (1, 2, 4, 8, 10)
# From arXiv 2506.01986: Llama-2-70B-Chat on 8 MI250, tokens per second by texts at once; their batched plain decoding at 4 and 10.
SPECMEMO, PLAIN = {1: 5.7, 2: 14.5, 4: 28.8, 8: 41.6, 10: 46.0}, {4: 14.2, 10: 29.8}
CONTEXT = 1024
# Nodes of a draft level at most, and groups of texts (`understudy.plan`).
WIDEST, MOST_GROUPS = 64, 4


@dataclass(frozen=True)
class Times:
    """What one device takes. Rates are bytes per second, times seconds; all but `handoff` were measured (benchmarks/RESULTS.md)."""

    # Exact weights of 16 bits that a pass of one node multiplies by: 6.54 GB in 10 ms.
    exact_rate: float = 6.54e9 / 10e-3
    # What each more node adds, as a share of that: 2,000 nodes took 95 ms.
    node_share: float = (95 - 10) / 10 / 2000
    # The copy of 4 bits, in whole decoder blocks of 8 nodes: 38 us of bytes at 3.35 TB/s in 168 us.
    copy_rate: float = 38e-6 * 3.35e12 / 168e-6
    # Nodes up to which a draft level takes as long as that, and what each more adds, as a share of it: its products took 149 us
    # with 16 and 443 with 64.
    level_nodes: int = 16
    level_share: float = (443 / 149 - 1) / 48
    # Assumed: from the end of a lane's product until the first device has its outputs and the next inputs are there, and from the
    # end of a stage until the next one has begun.
    handoff: float = 30e-6
    # In stages, where nothing is recorded, the host asks for each operation: for those of one Linear, with the launches that a GPU
    # would need beside the Python of `asking.py`, this is assumed. One group asks at a time.
    asking: float = 40e-6

    def wider(self, nodes: int) -> float:
        """How many times as long as of few nodes a draft level of so many takes."""
        return 1 + self.level_share * max(nodes - self.level_nodes, 0)


@dataclass(frozen=True)
class Portions:
    """What one device does in a pass, Linear by Linear."""

    # Bytes of exact weights that it multiplies by, and those of them that stream.
    exact: Sequence[int]
    streamed: Sequence[int]
    # Bytes of its stream that have come before a pass begins, and bytes per second of the rest.
    ahead: int
    link: float


def pass_seconds(devices: Sequence[Portions], nodes: int, times: Times) -> float:
    """How long a pass of `nodes` nodes takes: all devices are done with a Linear before the next one begins."""
    now = 0.0
    come = [-one.ahead for one in devices]
    slower = (1 + times.node_share * (nodes - 1)) / times.exact_rate
    for index in range(len(devices[0].exact)):
        ends = [now]
        for place, one in enumerate(devices):
            if not one.exact[index]:
                continue
            come[place] += one.streamed[index]
            there = max(come[place], 0) / one.link if one.streamed[index] else 0.0
            ends.append(max(now, there) + one.exact[index] * slower + (times.handoff if place else 0.0))
        now = max(ends)
    return now


def staged_seconds(devices: Sequence[Portions], pieces: Sequence[int], times: Times) -> float:
    """How long a pass in stages takes that is cut into `pieces` of so many nodes: a device has one piece at a time, in their order,
    and the first one multiplies by the last Linear behind the last stage. What streams must be there when its stage ends."""
    first, *further = devices
    stages = [sum(first.exact[:-1]), *(sum(one.exact) for one in further)]
    waits = [max(sum(one.streamed) - one.ahead, 0) / one.link for one in devices]
    free = [0.0] * len(devices)
    ends = []
    for nodes in pieces:
        slower = (1 + times.node_share * (nodes - 1)) / times.exact_rate
        now = 0.0
        for place, exact in enumerate(stages):
            now = free[place] = max(now, free[place]) + max(exact * slower, waits[place]) + (times.handoff if place else 0.0)
        ends.append((now + times.handoff, first.exact[-1] * slower))
    now = free[0]
    for there, takes in ends:
        now = max(now, there) + takes
    return now


def cut(nodes: int, count: int) -> list[int]:
    """Nodes of each piece of a pass of `nodes` over `count` devices, of which nothing streams."""
    from understudy.devices.processor import Processor
    from understudy.models.several_devices.stages import Stages

    stages = Stages([Processor(1)] * count, [(place, place + 1) for place in range(count)])
    stages.fit(whole=True, step=1, streams=False)
    stages.close()
    return [end - start for start, end in stages.pieces(nodes)]


Walk = Callable[[Sequence[Portions], int, Times], float]


def in_stages(devices: Sequence[Portions], nodes: int, times: Times) -> float:
    """How long a pass of `nodes` nodes takes in stages, cut as it would be."""
    streams = any(sum(one.streamed) for one in devices)
    pieces = [nodes] if streams else cut(nodes, len(devices))
    return max(staged_seconds(devices, pieces, times), len(pieces) * sum(map(linears, devices)) * times.asking)


def linears(device: Portions) -> int:
    """How many Linears a device has in stages."""
    return sum(exact > 0 for exact in device.exact)


def best(
    devices: Sequence[Portions], copy_bytes: int, rows: int, most: int, times: Times, walk: Walk = pass_seconds
) -> tuple[float, str]:
    """Tokens per second of the best shape of trees of at most `most` nodes in all, and that shape. The copy of 4 bits drafts
    them, which is taken to agree as it does on the built-in model."""
    from understudy.plan.drafts import MOST_LEVELS, WIDTHS, Drafting

    drafting = Drafting.by_copy("int4")
    found = []
    for levels in range(1, MOST_LEVELS + 1):
        for width in WIDTHS:
            nodes = rows * (1 + levels * width)
            if nodes > most or rows * width > max(WIDEST, rows):
                continue
            level = copy_bytes / times.copy_rate * times.wider(rows * width)
            if walk is in_stages:
                level = max(level + len(devices) * times.handoff, sum(map(linears, devices)) * times.asking)
            seconds = levels * level + walk(devices, nodes, times)
            found.append((rows * drafting.tokens(levels, width) / seconds, f"{levels} x {width}"))
    return max(found)


# Work on one device: its number, seconds, and for how many of them the host must ask for it.
Work = tuple[int, float, float]


def side_by_side(groups: Sequence[Sequence[Work]]) -> float:
    """Seconds until all `groups` are done: each has work on one device after the other. A device has one group at a time, the one
    that came first; and the host asks for one group's work at a time, which is not done before all of it was asked for."""
    free: dict[int, float] = {}
    host = 0.0
    waiting = [(0.0, group, 0) for group in range(len(groups))]
    while waiting:
        came, group, step = heapq.heappop(waiting)
        device, seconds, asking = groups[group][step]
        begin = max(came, free.get(device, 0.0), host if asking else 0.0)
        if begin > came:
            heapq.heappush(waiting, (begin, group, step))
            continue
        host = max(host, begin + asking)
        free[device] = begin + max(seconds, asking)
        if step + 1 < len(groups[group]):
            heapq.heappush(waiting, (free[device], group, step + 1))
    return max(free.values(), default=0.0)


def one_group(
    devices: Sequence[Portions], copy_bytes: int, rows: int, levels: int, width: int, times: Times
) -> list[Work]:
    """What a group of so many rows does, device by device: a draft of `levels` levels, and the pass that verifies it."""
    first, *further = devices
    nodes = rows * (1 + levels * width)
    slower = (1 + times.node_share * (nodes - 1)) / times.exact_rate
    level = copy_bytes / times.copy_rate / len(devices) * times.wider(rows * width) + times.handoff
    stages = [sum(first.exact[:-1]), *(sum(one.exact) for one in further)]
    asked = [linears(one) * times.asking for one in devices]
    passed = [(place, exact * slower + times.handoff, asked[place]) for place, exact in enumerate(stages)]
    drafted = [(place, level, asking) for place, asking in enumerate(asked)] * levels
    return [*drafted, *passed, (0, first.exact[-1] * slower, times.asking)]


def best_in_groups(
    devices: Sequence[Portions], copy_bytes: int, rows: int, most: int, times: Times, several: int = 2
) -> tuple[float, str]:
    """As `best`, where groups of rows go through the stages side by side: the best number of them too, at least `several`."""
    from understudy.plan.drafts import MOST_LEVELS, WIDTHS, Drafting

    drafting = Drafting.by_copy("int4")
    found = []
    for count in range(min(several, rows), min(len(devices), rows, MOST_GROUPS) + 1):
        sizes = [(place + 1) * rows // count - place * rows // count for place in range(count)]
        for levels in range(1, MOST_LEVELS + 1):
            for width in WIDTHS:
                if max(sizes) * (1 + levels * width) > most // count or max(sizes) * width > max(WIDEST, max(sizes)):
                    continue
                groups = [one_group(devices, copy_bytes, size, levels, width, times) for size in sizes]
                speed = rows * drafting.tokens(levels, width) / side_by_side(groups)
                found.append((speed, f"{count} of {levels} x {width}"))
    return max(found)


def portions(config: dict[str, object], count: int, split: str, rows: int) -> tuple[list[Portions], Plan]:
    """What each of `count` devices does, by its plan for so many rows with this `split`."""
    from understudy.options import Options
    from understudy.plan.other_machine import OtherMachine
    from understudy.planning import foretold_of_config, planned_devices

    named = ",".join(f"cuda:{number}" for number in range(count)) if count > 1 else None
    asked: dict[str, object] = {"codec": "raw", "context": CONTEXT, "rows": rows, "resident": "residual"}
    asked |= {"devices": named, "split": split} if named else {}
    options = Options.of(asked, os.environ)
    other = OtherMachine.parse(MACHINE)
    first, *further = planned_devices(options, other)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(config))
        blueprint = foretold_of_config(place, options).blueprint(options, other.machine(), first)
    blueprint = replace(blueprint, further=tuple(further))
    plan, sizes = blueprint.plan(), blueprint.footprint
    devices = []
    for one in (plan, *plan.lanes):
        mine = frozenset(range(len(sizes.part_bytes))) if one.parts is None else one.parts
        exact, streamed, start = [], [], 0
        for linear in sizes.linears:
            own = [number for number in range(start, start + linear.parts) if number in mine]
            exact.append(sum(sizes.part_bytes[number] for number in own))
            streamed.append(sum(sizes.part_bytes[number] for number in own if number not in one.residents))
            start += linear.parts
        devices.append(Portions(exact, streamed, one.ring_bytes, float(other.link)))
    return devices, plan


def main() -> None:
    from plans import SHAPES
    from understudy import UsageError

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plan", action="store_true", help="what each plan says, before the table")
    parser.add_argument("--handoff", type=float, default=Times.handoff * 1e6, help="microseconds, which nobody measured")
    parser.add_argument("--asking", type=float, default=Times.asking * 1e6, help="microseconds a Linear, which nobody measured")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="texts at once")
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    given = parser.parse_args()
    times = Times(handoff=given.handoff * 1e-6, asking=given.asking * 1e-6)
    lines = []
    for count, split in [(number, name) for number in given.devices for name in ("blocks", "stages")[:number]]:
        walk: Walk = in_stages if split == "stages" else pass_seconds
        try:
            devices, plan = portions(SHAPES["Llama 3 70B"], count, split, max(given.rows))
        except UsageError as error:
            lines.append(f"{count} | - | {split if count > 1 else 'alone'}: does not fit | " + " | ".join("-" for _ in given.rows))
            print(f"{count} devices, {split}: {error}", file=sys.stderr)
            continue
        if given.plan:
            print("\n".join(plan.lines()), end="\n\n")
        streamed = sum(sum(one.streamed) for one in devices) / 1e9
        most = plan.passes.trees * plan.tile
        copies = sum(one.items["substitute"] for one in ((plan, *plan.lanes) if split == "stages" else (plan,)))
        cells = [best(devices, copies, rows, most, times, walk) for rows in given.rows]
        plain = [rows / walk(devices, rows, times) for rows in given.rows]
        what = f"{count} | {streamed:.0f} GB | {split if count > 1 else 'alone'}"
        lines.append(f"{what}, drafted | " + " | ".join(f"{speed:.1f} ({shape})" for speed, shape in cells))
        if split == "stages" and not streamed:
            grouped = [best_in_groups(devices, copies, rows, most, times) for rows in given.rows]
            lines.append(f"{what}, groups, drafted | " + " | ".join(f"{speed:.1f} ({shape})" for speed, shape in grouped))
        lines.append(f"{what}, plain | " + " | ".join(f"{speed:.1f}" for speed in plain))
    lines.append("8 | | SpecMemo | " + " | ".join(str(SPECMEMO.get(rows, "-")) for rows in given.rows))
    lines.append("8 | | batched plain there | " + " | ".join(str(PLAIN.get(rows, "-")) for rows in given.rows))
    heads = ["devices", "streamed in each pass", "", *(f"{rows} text{'s' * (rows > 1)}" for rows in given.rows)]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    print("\n".join(f"| {line} |" for line in lines))


if __name__ == "__main__":
    main()
