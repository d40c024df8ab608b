"""What it gives that groups of texts go through the stages of several devices side by side.

    python benchmarks/beside.py > table.md              # --devices 8 --rows 1 2 4 8 10 --level-ms 48.5 --pass-ms 216

The engine, the drafts and the texts are real, of the built-in model with its layers in stages; the devices are simulated: each
takes its share of the time of a draft level or of a pass, beside what this machine needs. The times are those of `several.py` for a
70B, and grow with nodes as they do there. All texts are compared with those of one device without drafting."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from several import Times

if TYPE_CHECKING:
    from understudy import LLM

TOPICS = ("the sea", "a garden", "old machines", "a journey", "music", "winter", "bread", "a lighthouse", "paper", "the moon")


class Devices(threading.local):
    """What each stage of the calling thread's forward takes. Seconds."""

    stage: float = 0.0


def simulated(llm: LLM, level: float, whole: float) -> None:
    """Let each stage of `llm` last its share of a level that takes `level` seconds, or of a pass that takes `whole`."""
    from understudy.models.several_devices.walk import Walk

    stages, times, here = llm.model.stages, Times(), Devices()
    assert stages is not None
    count = len(stages.devices)
    draft, target = llm.model.draft, llm.model.target
    forward, together, enter = draft._run, target._together, Walk.enter

    def run(given: Any) -> Any:
        here.stage = level / count * times.wider(len(given.nodes))
        return forward(given)

    def verified(nodes: Any, *others: Any) -> Any:
        here.stage = whole / count * (1 + times.node_share * (len(nodes) - 1))
        return together(nodes, *others)

    def entered(walk: Walk, stop: int) -> None:
        came = walk.stop < stop < count
        enter(walk, stop)
        if came:
            time.sleep(here.stage)

    draft._run, target._together = run, verified  # type: ignore[method-assign]
    Walk.enter = entered  # type: ignore[method-assign]


def measured(llm: LLM, rows: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Tokens per second of `rows` texts at once, and the texts."""
    from understudy import SamplingParams

    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    prompts = [f"Write about {topic}." for topic in TOPICS[:rows]]
    start = time.perf_counter()
    done = llm.generate(prompts, params)
    return rows * tokens / (time.perf_counter() - start), [one.token_ids for one in done]


def main() -> None:
    import torch

    from understudy import LLM
    from understudy.devices import processor
    from understudy.ways import WayChoice

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 10])
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--level-ms", type=float, default=48.5, help="a draft level of few nodes on one device after the other")
    parser.add_argument("--pass-ms", type=float, default=216.0, help="a pass of one node")
    given = parser.parse_args()
    torch.set_num_threads(1)
    processor.processors_by_node = lambda: dict.fromkeys(range(given.devices), frozenset(os.sched_getaffinity(0)))
    asked: dict[str, Any] = {"rows": max(given.rows), "context": 256, "memory": "8GiB", "resident": "auto"}
    with LLM(method="none", **asked) as llm:
        plain = {rows: measured(llm, rows, given.tokens)[1] for rows in given.rows}
    lines = []
    ways: dict[str, Callable[[int, int], int] | None] = {
        "all texts together": lambda texts, groups: 1,
        "groups side by side": lambda texts, groups: groups,
        "as is tried to be faster": None,
    }
    with LLM(devices=",".join(f"cpu:{number}" for number in range(given.devices)), split="stages", **asked) as llm:
        stages = llm.model.stages
        assert stages is not None
        simulated(llm, given.level_ms / 1e3, given.pass_ms / 1e3)
        for name, groups in ways.items():
            cells, stages.occupancy.most_busy = [], 0
            for rows in given.rows:
                llm.engine.grouping = WayChoice()
                if groups is not None:
                    llm.engine.grouping.of = groups  # type: ignore[method-assign]
                # The first run learns what this takes.
                measured(llm, rows, given.tokens)
                speed, texts = measured(llm, rows, given.tokens)
                assert texts == plain[rows], f"{name}: other texts"
                cells.append(f"{speed:.1f}")
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {stages.occupancy.most_busy} |")
    heads = ["", *(f"{rows} text{'s' * (rows > 1)}" for rows in given.rows), "devices at work at once"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
