"""Several devices in stages: each has all Linears of some decoder layers, one after another, and keeps the keys and values of
those.

The first device also has what lies before the layers, the head behind them, and what chooses tokens. The copy that drafts lies
where its layers do, so neither it nor the KV cache must fit on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from ..errors import UsageError
from .demand import Footprint, LevelSize, PlanRequest
from .lanes import LaneRequest, asked_of, planned_for
from .memory import MARGIN, budget_for, columns_of, make_plan, smallest_passes, tree_slots, usual_ring
from .placement import STAGES, Passes, Plan
from .residents import LinearSize

# A device that holds too little for its layers is worse than any that streams, the more so the more bytes it lacks. In seconds.
TOO_LITTLE = 1e9
# Bytes per second of fast memory where nobody knows better: all devices are alike then.
LIKELY = 1e12
# Groups of texts on devices that have memory of their own: one host asks for the work of all of them, one thing after another.
MOST_GROUPS = 4
NOTHING = LinearSize(0, 0, 0)


def plan_stages(footprint: Footprint, request: PlanRequest, lanes: Sequence[LaneRequest]) -> tuple[Plan, ...]:
    """The plan of the first device, and one for each of `lanes`: what streams is what streams there, and so is the link.

    Groups of texts may be under way at the same time where nothing streams beside what they need: weights would come anew for
    each. Raises UsageError where one of them has too little memory, or there are fewer layers than devices."""
    count, devices = len(footprint.layers), len(lanes) + 1
    if count < devices:
        raise UsageError(f"--split stages: {count} decoder layers are too few for {devices} devices.")
    most = min(devices, request.rows, MOST_GROUPS if request.widest_level else devices) if request.apart else 1
    if most > 1:
        try:
            plans = _plan_stages(footprint, replace(request, groups=most), lanes)
        except UsageError:
            # What they need beside one group does not fit.
            plans = ()
        if plans and not any(plan.streamed_bytes for plan in plans):
            return plans
    return _plan_stages(footprint, request, lanes)


def _plan_stages(footprint: Footprint, request: PlanRequest, lanes: Sequence[LaneRequest]) -> tuple[Plan, ...]:
    """The plans for as many groups of texts as `request` says."""
    first = replace(request, resident="none" if request.resident == "none" else "residual", spilling=None)
    asked = [first, *(replace(asked_of(first, lane), widest_level=first.widest_level) for lane in lanes)]
    smallest = smallest_passes(first)
    layers = cut(footprint, asked, smallest)
    sizes = [_stage(footprint, *own, front=place == 0) for place, own in enumerate(layers)]
    passes = smallest
    if all(budget_for(size, one, smallest) <= one.budget_bytes for size, one in zip(sizes, asked, strict=True)):
        found = [make_plan(size, one).passes for size, one in zip(sizes, asked, strict=True)]
        passes = Passes(min(one.trees for one in found), min(one.tiles for one in found))
    starts = [0, *accumulate(linear.parts for linear in footprint.linears)]
    plans = []
    for place, (own, size, one) in enumerate(zip(layers, sizes, asked, strict=True)):
        mine = [index for index, linear in enumerate(footprint.linears) if _has(linear, *own, front=place == 0)]
        parts = [number for index in mine for number in range(starts[index], starts[index + 1])]
        plan = planned_for(size, one, passes, parts, lanes[place - 1] if place else None)
        plans.append(replace(plan, split=STAGES, linears=frozenset(mine), stage=own))
    return tuple(plans)


def cut(footprint: Footprint, asked: Sequence[PlanRequest], passes: Passes) -> list[tuple[int, int]]:
    """First layer and one past the last of each device: the one that takes longest for its layers takes as little as can be, and
    all together then do. A layer that reads another's keys and values is where that is."""
    count = len(footprint.layers)
    costs = [stage_seconds(footprint, one, passes, front=place == 0) for place, one in enumerate(asked)]
    ends = [edge for edge in range(1, count) if all(layer.reads >= edge for layer in footprint.layers[edge:])]
    # By layers so far: the longest device, all of them, and where each begins.
    best: dict[int, tuple[float, float, list[int]]] = {0: (0.0, 0.0, [])}
    for place, cost in enumerate(costs):
        found: dict[int, tuple[float, float, list[int]]] = {}
        for end in ends if place < len(costs) - 1 else [count]:
            ways = [
                (max(longest, seconds), total + seconds, [*edges, start])
                for start, (longest, total, edges) in best.items()
                if start < end
                for seconds in (cost(start, end),)
            ]
            if ways:
                found[end] = min(ways)
        best = found
    if count not in best:
        raise UsageError(
            f"--split stages: layers of this model read keys and values of others: they make {len(ends) + 1} stages at most."
        )
    starts = best[count][2]
    return list(zip(starts, [*starts[1:], count], strict=True))


def stage_seconds(footprint: Footprint, request: PlanRequest, passes: Passes, front: bool) -> Callable[[int, int], float]:
    """What gives the seconds that a device takes for layers from one to before another: what streams, and what is read."""
    bare = _stage(footprint, 0, 0, front)
    free = (request.budget_bytes - budget_for(bare, request, passes)) * (1 - MARGIN)
    columns = columns_of(request.context, tree_slots(footprint, request, passes))
    whole = [_stage(footprint, layer, layer + 1, front=False) for layer in range(len(footprint.layers))]
    kept = [size.substitute_bytes + size.cache_bytes(columns, request.record_nodes) * request.rows for size in whole]
    held = [0, *accumulate(nbytes + size.shared_bytes for nbytes, size in zip(kept, whole, strict=True))]
    parts = [0, *accumulate(sum(size.part_bytes) for size in whole)]
    exact = [0, *accumulate(size.exact_bytes for size in whole)]
    memory = request.speeds.memory_bytes_per_second or LIKELY
    link = request.speeds.link_bytes_per_second or LIKELY / 100

    def seconds(start: int, end: int) -> float:
        room = free - (held[end] - held[start])
        brought = parts[end] - parts[start] + sum(bare.part_bytes)
        read = (exact[end] - exact[start] + bare.exact_bytes) / memory
        if request.resident != "none" and brought <= room:
            return read
        room -= usual_ring(footprint, max(room, 0))
        if room < 0:
            return TOO_LITTLE - room
        return read + (brought if request.resident == "none" else brought - room) / link

    return seconds


def _has(linear: LinearSize, first: int, last: int, front: bool) -> bool:
    """Whether a device with these layers has `linear`: the head is in front."""
    return first <= linear.layer < last or (front and linear.layer < 0)


def _stage(footprint: Footprint, first: int, last: int, front: bool) -> Footprint:
    """What a device takes with layers `first` to before `last`; in `front`, with all that is not a layer's."""
    linears = tuple(linear if _has(linear, first, last, front) else NOTHING for linear in footprint.linears)
    part_bytes: list[int] = []
    number = 0
    for linear, kept in zip(footprint.linears, linears, strict=True):
        part_bytes += footprint.part_bytes[number : number + linear.parts] if kept is not NOTHING else ()
        number += linear.parts
    layers = footprint.layers[first:last]
    own = replace(
        footprint.with_layers(layers),
        part_bytes=tuple(part_bytes),
        linears=linears,
        substitute_bytes=sum(linear.substitute_bytes for linear in linears),
        spill=None,
    )
    if front:
        return own
    return replace(
        own,
        shared_bytes=footprint.shared_bytes * len(layers) // max(len(footprint.layers), 1),
        tile_logits_bytes=0,
        choosing_bytes=0,
        embedding_bytes=0,
        tokenizer_bytes=0,
        grown_bytes=0,
        levels=LevelSize(footprint.levels.node_bytes, 0, 0, 0) if footprint.levels is not None else None,
    )
