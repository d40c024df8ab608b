"""What the host does in a round of drafting and verifying, on a device that does nothing: no kernel, copy or recorded level runs,
so all the time that is left is the host's own.

    python benchmarks/host_time.py --rows 1 8
    python benchmarks/host_time.py --rows 8 --profile 25 --json host.json

A tiny random Llama with as many layers as a usual one, all weights streamed. Each round launches so many levels, reads back a tree
that was prepared, and verifies it; its chain of first choices is accepted. For each number of rows: milliseconds of a round, of its
draft and of its pass (the median of rounds, and processor time of the thread); launches of kernels, levels and copies a round.
`--profile` shows the functions that take most by themselves. Torch's operations do run, on few numbers: about 5 microseconds each,
as it takes to give one to a GPU. What Triton takes to launch a kernel is not in it."""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from gpu_child import prepare_path

WIDTH, DEPTH = 8, 8
LAYERS, PROMPT = 16, 32
# The token that is always chosen, and one that never is.
CHOSEN, OTHER = 7, 9
# children that are known of each node
RANKED = 6
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "max_position_embeddings": 4096}
DONE: Counter[str] = Counter()


class NoStreams:
    """Streams on which nothing is ever late, since nothing is done."""

    def register(self, memory: Any) -> str:
        return ""

    def unregister(self, memory: Any) -> None: ...

    def copy_stream(self) -> str:
        return "copies"

    def current_stream(self) -> str:
        return "work"

    def record(self, stream: Any) -> float:
        return time.perf_counter()

    def await_event(self, stream: Any, event: Any) -> None: ...

    def copy(self, stream: Any, source: Any, into: Any) -> None:
        DONE["copies"] += 1

    def happened(self, event: Any) -> bool:
        return True

    def block_until(self, event: Any) -> None: ...

    def seconds_between(self, first: float, last: float) -> float:
        return last - first

    def finish(self, stream: Any) -> None: ...


class Prepared:
    """Levels that are recorded by not running them; `replayed` is called for each."""

    def __init__(self) -> None:
        self.replayed: Callable[[], None] = lambda: None

    def capture(self, work: Callable[[], None]) -> Prepared:
        return self

    def replay(self) -> None:
        DONE["levels"] += 1
        self.replayed()


def open_nothing() -> Any:
    """The device, as `DEVICES` opens it."""
    from understudy.devices.accelerator import Accelerator

    class Nothing(Accelerator):
        def memory(self) -> tuple[int, int]:
            return 4 << 30, 4 << 30

        def forget(self) -> None: ...

        def peak_bytes(self) -> int:
            return 0

        def landing(self, nbytes: int) -> Any:
            return torch.zeros(nbytes, dtype=torch.uint8)

        def late(self, source: Any, into: Any) -> Any:
            into.copy_(source)
            return self.mark()

        def link_bytes_per_second(self, disk: float) -> float:
            return 5e10

        def token_chooser(self) -> Any:
            usual = super().token_chooser()

            def choose(logits: Any, draws: Any) -> Any:
                usual(logits, draws)
                return torch.full((len(logits),), CHOSEN)

            return choose

    return Nothing("nothing", "cpu", NoStreams(), graphs=Prepared())  # type: ignore[arg-type]


def grown(search: Any, rows: int) -> Callable[[], None]:
    """What leaves, with the last level of a draft, a tree of WIDTH * DEPTH nodes and a root for each of `rows` sequences."""
    from understudy.drafters.device_state import SCORES
    from understudy.kernels.search_columns import CHILDREN, FOUND, PARENT, SPINE, THROUGH, TOKEN
    from understudy.kernels.search_columns import DEPTH as DEEP

    state = search.tensors.state
    prepared = state.alike(lambda nbytes: state.memory.new_zeros(nbytes))
    node, chances = prepared["node"], prepared["node chances"]
    prepared["count"][:rows] = 1 + WIDTH * DEPTH
    for i in range(1 + WIDTH * DEPTH):
        level, place = (i + WIDTH - 1) // WIDTH, (i - 1) % WIDTH
        node[:rows, i, TOKEN] = OTHER + place if place else CHOSEN
        node[:rows, i, PARENT] = max(1 + (level - 2) * WIDTH, 0) if i else -1
        node[:rows, i, DEEP] = level
        node[:rows, i, SPINE] = int(place == 0)
        node[:rows, i, FOUND] = RANKED
    node[:rows, :, CHILDREN : CHILDREN + RANKED] = torch.arange(CHOSEN, CHOSEN + RANKED)
    chances[:rows, :, THROUGH : THROUGH + RANKED] = -1.0
    chances[:rows, :, SCORES : SCORES + RANKED] = torch.arange(0.0, -RANKED, -1.0)

    def replayed() -> None:
        if DONE["levels"] % DEPTH == 0:
            search.tensors.state.memory.copy_(prepared.memory)
            search.tensors.state["node"][:rows, 0, TOKEN] = search.given["root"][:rows]

    return replayed


@contextmanager
def opened(rows: int, codec: str, folder: Path) -> Iterator[Any]:
    """A model on the device, with `rows` texts that have been read; kernels run until it is loaded, since it tries them."""
    from triton.runtime.interpreter import InterpretedFunction

    from tests.interpreter import quicken
    from tests.tiny import save
    from understudy import LLM
    from understudy.devices import DEVICES
    from understudy.models import model as loading

    quicken()
    DEVICES["nothing"] = f"{__name__}:open_nothing"
    if not (folder / "model").exists():
        save(folder / "model", "llama", torch.bfloat16, **SHAPE)
    method = f"substitute:width={WIDTH},depth={DEPTH}"
    context = 2048
    options = {"memory": "2GiB", "resident": "none", "context": context, "rows": rows, "device": "nothing", "codec": codec}

    def nothing(self: Any, *args: Any, **given: Any) -> None:
        DONE["kernels"] += 1

    with ExitStack() as stack:
        # The host's own sums may differ with the rows; a device's do not.
        stack.enter_context(patch.object(loading, "rows_apart", lambda *given: True))
        llm = stack.enter_context(LLM(folder / "model", method=method, **options))
        stack.enter_context(patch.object(InterpretedFunction, "run", nothing))
        yield llm


def rounds(llm: Any, rows: int, count: int, profiler: cProfile.Profile | None = None) -> dict[str, Any]:
    """Texts of `rows` requests, drafted for `count` rounds: what each took of the host."""
    from gpu_measure import passes_of
    from understudy import SamplingParams

    engine = llm.engine
    search, accepted = engine.drafter.search, DEPTH + 1
    params = SamplingParams(max_new_tokens=1 + count * accepted, ignore_eos=True)
    prompts = [[3 + row, *range(20, 20 + PROMPT)] for row in range(rows)]
    search.device.graphs.replayed = grown(search, rows)
    taken: list[tuple[float, float]] = []
    step = engine.step

    def timed(*given: Any) -> Any:
        DONE.clear()
        began, worked = time.perf_counter(), time.thread_time()
        if profiler is not None and taken:
            profiler.enable()
        try:
            return step(*given)
        finally:
            if profiler is not None:
                profiler.disable()
            taken.append((time.perf_counter() - began, time.thread_time() - worked))
            launched.append(dict(DONE))

    launched: list[dict[str, int]] = []
    engine.kept.clear()
    with patch.object(engine, "step", timed), passes_of(llm) as passes:
        done = llm.generate(prompts, params)
    assert all(text.stats.accepted for text in done), "no draft was accepted: this measures no round"
    # the first round reads the prompts
    nodes, draft, verify = zip(*passes[1:], strict=True)
    whole, work = zip(*taken[1:], strict=True)
    return {
        "rounds": len(whole), "nodes": max(nodes), "ms": 1e3 * statistics.median(whole), "cpu_ms": 1e3 * statistics.median(work),
        "draft_ms": statistics.median(draft), "pass_ms": statistics.median(verify), "launches": launched[len(launched) // 2],
    }  # fmt: skip


def functions(profiler: cProfile.Profile, rounds_run: int, most: int) -> list[str]:
    """Functions by the time they take themselves, a round."""
    entries = pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
    ranked = sorted(entries, key=lambda each: -each[1][2])[:most]
    return [
        f"{1e3 * own / rounds_run:8.3f} ms {calls / rounds_run:8.1f} x  {'/'.join(file.split('/')[-3:])}:{line} {name}"
        for (file, line, name), (_, calls, own, _, _) in ranked
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Times what the host does in rounds on a device that does nothing.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--codec", choices=("raw", "delta"), default="delta")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="also the N functions that take most")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if min(*asked.rows, asked.rounds) < 1 or asked.profile < 0 or asked.rounds * (DEPTH + 1) + PROMPT > 1900:
        parser.error("--rows and --rounds must be more than 0, --rounds at most 200")
    prepare_path(True)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNDERSTUDY_CACHE"] = str(Path(folder) / "cache")
        for rows in asked.rows:
            with opened(rows, asked.codec, Path(folder)) as llm:
                rounds(llm, rows, 3)
                found[rows] = one = rounds(llm, rows, asked.rounds)
                launches = ", ".join(f"{count} {what}" for what, count in sorted(one["launches"].items()))
                took = f"{one['ms']:.1f} ms a round ({one['cpu_ms']:.1f} of it busy)"
                parts = f"draft {one['draft_ms']:.1f}, pass {one['pass_ms']:.1f}"
                print(f"{rows} rows, {one['nodes']} nodes: {took}: {parts}; {launches}", flush=True)
                if asked.profile:
                    profiler = cProfile.Profile()
                    again = rounds(llm, rows, asked.rounds, profiler)
                    print("\n".join(functions(profiler, again["rounds"], asked.profile)), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
