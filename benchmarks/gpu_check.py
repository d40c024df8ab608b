"""Everything that needs a GPU, checked and measured in one command, in under ten minutes, with the Python at hand.

    python benchmarks/gpu_check.py --json gpu.json        (or: make gpu-check)
    python benchmarks/gpu_check.py --quick --profile      what shows all goals of speed, in 200 s, and where the time goes
    python benchmarks/gpu_check.py --only exact plain raw rows8
    python benchmarks/gpu_check.py --only exact           exactness alone, of more families
    python benchmarks/gpu_check.py --only resident        a level of the draft with fused, stock and compiled blocks
    python benchmarks/gpu_check.py --fake                 the same code on a simulated device and a tiny model, without a GPU

While a stand-in and its Stores are made, exactness: each kernel against the CPU's, bits where bits are promised; then drafted
texts, which must be the plain ones; where one is not, the first token that differs is shown with how close the exact model's choice
was there. What takes longer than that goes on after speed. Speed: methods one after another, each in a process whose GPU memory is
capped. Figures are written as they come, so that what was measured is there however it ends. Last come a table, and what was wanted
beside what was reached. The status is 1 if anything was not exact. `--keep DIR` leaves the stand-in and its Stores there for the
next time."""

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import gpu_place
import gpu_work
from gpu_child import Child, prepare_path
from gpu_print import printed
from gpu_results import Results
from gpu_rows import (
    FAKE,
    GIB,
    GROUPS,
    QUICK,
    RUNS,
    Run,
    Size,
    by_load,
    chosen,
    codecs_of,
    headed,
    simulated,
    unknown,
)

NEEDED = (
    "torch", "transformers", "safetensors", "tokenizers", "jinja2", "numpy", "numba", "greenlet", "psutil", "xxhash", "triton",
)  # fmt: skip
# With less time than this no row is begun.
LEAST_SECONDS = 5.0
# Importing everything may take long on a slow disk.
DESCRIBE_SECONDS = 180.0
COMPILERS = {"copies": gpu_work.compile_copies, "attention": gpu_work.compile_attention}
INSTEAD = "--fake runs the same on a simulated device"


def missing() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def lacks(names: Sequence[str]) -> str:
    """What is missing here, and how to bring it to a machine without a network."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    bring = f"pip download --only-binary=:all: --no-deps --python-version {version} --platform manylinux_2_28_x86_64"
    more = "--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64"
    carry = f"`{bring} {more} -d wheels {' '.join(names)}` elsewhere, `pip install --no-index --no-deps wheels/*` here"
    return f"gpu_check: these packages are missing: {', '.join(names)}. Without a network: {carry}."


@dataclass(frozen=True)
class Work:
    """What is to be done, and where. `start`: how processes begin (see `multiprocessing`)."""

    runs: tuple[Run, ...]
    exact: bool
    profile: bool
    folder: Path
    results: Results
    start: str = "forkserver"

    def begin(self, name: str, work: Callable[..., None], *given: Any) -> Child:
        return Child.begin(self.start, work, self.folder / f"{name}.log", self.results.size.device == "fake", *given)


def describe(work: Work) -> tuple[Work, str]:
    """`work` on this machine, with processes that can use its GPU; why that cannot be, if so."""
    for start in ("forkserver", "spawn"):
        work = replace(work, start=start)
        child = work.begin("describe", gpu_work.describe, work.results.size.device)
        found = list(child.messages(DESCRIBE_SECONDS))
        failure = child.failure()
        child.end()
        if failure or not found:
            return work, failure or "nothing is known of it"
        work.results.machine, there, trouble = found[0]
        # Where there is a GPU that a forked process cannot open, something that was imported has touched it.
        if not trouble or not there:
            break
    return work, trouble


def prepare(work: Work) -> list[str]:
    """Make the stand-in and its Stores, and compare meanwhile what must be exact: the one keeps the processor busy, the other
    the GPU. Returns the groups of what must be exact that were not done in their time."""
    size, results = work.results.size, work.results
    children: list[Child] = []
    if work.runs:
        children.append(work.begin("stores", gpu_work.prepare, work.folder, size, codecs_of(work.runs), headed(work.runs)))
        # Where nothing is compiled yet, processes of their own do it while the stand-in is made.
        children += [work.begin(name, by) for name, by in COMPILERS.items() if size.device != "fake"]
    most = size.exact_seconds if work.runs else size.seconds
    groups = gpu_work.EXACT_GROUPS[: size.exact_groups] + (() if work.runs or size.device == "fake" else gpu_work.FURTHER_GROUPS)
    exact = compare(work, groups, most - results.seconds) if work.exact else {}
    try:
        await_all(results, [*children, *exact.values()], lambda: results.seconds > most and not (work.runs and children[0].running))
        late = [name for name, child in exact.items() if child.running]
        say_failures(results, [*children, *(child for name, child in exact.items() if name not in late)])
        return late
    finally:
        for child in (*children, *exact.values()):
            child.end()


def finish(work: Work, groups: Sequence[str]) -> None:
    """Compare what must be exact and was not compared before the rows: its kernels are compiled by now."""
    results = work.results
    children = compare(work, groups, results.left) if results.left > LEAST_SECONDS else {}
    try:
        await_all(results, list(children.values()), lambda: False)
        say_failures(results, list(children.values()))
    finally:
        for child in children.values():
            child.end()
    for group in groups:
        if group not in children:
            results.cut_short(f"exactness of {group}: no time was left")


def compare(work: Work, groups: Sequence[str], seconds: float) -> dict[str, Child]:
    """Processes that compare `groups` of what must be exact, in about so many seconds."""
    device = work.results.size.device
    return {
        name: work.begin(f"exactness of {name}", gpu_work.exact, device, seconds - LEAST_SECONDS, name) for name in groups
    }


def await_all(results: Results, children: Sequence[Child], enough: Callable[[], bool]) -> None:
    """Hear `children` until all have ended, it is enough, or no time is left."""
    while results.left > 0 and any(child.running for child in children):
        hear(results, children)
        if enough():
            break
        time.sleep(0.1)
    hear(results, children)


def say_failures(results: Results, children: Sequence[Child]) -> None:
    for child in children:
        child.process.join(timeout=0)
        if why := child.failure():
            results.cut_short(f"{child.said.stem}: {why}")


def hear(results: Results, children: Sequence[Child]) -> None:
    for child in children:
        for kind, *told in child.ready():
            (results.checked if kind == "checked" else results.was_made)(*told)


def speed(work: Work) -> None:
    """Every row as long as there is time; what was left out says so. Rows that share a load share a process; where one fails or
    takes too long, another goes on after it."""
    for runs in by_load(work.runs):
        pending = list(runs)
        while pending:
            pending = load(work, pending)


def load(work: Work, runs: list[Run]) -> list[Run]:
    """Measure `runs` in one process. Returns those after the first that could not be measured."""
    size, results = work.results.size, work.results
    if runs[0].load.method == "accelerate" and importlib.util.find_spec("accelerate") is None:
        results.measured(runs[0], {"error": "accelerate is not installed"})
        return runs[1:]
    if results.left < LEAST_SECONDS:
        for run in runs:
            results.measured(run, {"error": "no time was left"})
        return []
    model = str(gpu_place.standin_of(work.folder, size))
    name = f"measure-{runs[0].short}"
    child = work.begin(name, gpu_work.measure, runs, model, size, work.profile)
    known = set()
    try:
        for short, figures in child.messages(size.row_seconds, results.end):
            known.add(short)
            results.measured(next(run for run in runs if run.short == short), figures)
        failure = child.failure()
    finally:
        child.end()
    left = [run for run in runs if run.short not in known]
    if failure and left:
        results.measured(left[0], {"error": failure})
    elif failure:
        results.measured(runs[-1], {"more_error": failure})
    return left[1:] if failure else []


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Checks and measures everything that needs a GPU.")
    parser.add_argument("--fake", action="store_true", help="on a simulated device and a tiny model")
    parser.add_argument("--quick", action="store_true", help=f"what shows all goals of speed, in {QUICK['seconds']:.0f} s")
    parser.add_argument("--profile", action="store_true", help="kernels, host functions and pauses of the link as well")
    parser.add_argument("--widen", type=int, help="size of the stand-in; 20 (the default) is 3.3 billion parameters, 29 about 7")
    parser.add_argument("--memory", type=float, help="cap on GPU memory, in GiB (default 4)")
    parser.add_argument("--seconds", type=float, help="after which nothing new is begun (default 560)")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME",
        help=f"exact, {', '.join(GROUPS)}, or rows: {', '.join(run.short for run in RUNS)}",
    )  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the stand-in and its Stores there, and leave them")
    parser.add_argument("--json", type=Path, help="also write all figures here, as they come")
    given = parser.parse_args()
    given.only = [name for names in given.only for name in names.split(",")]
    if strange := unknown(given.only):
        parser.error(f"--only: there is no {', '.join(strange)}; rows are {', '.join(run.short for run in RUNS)}")
    if (given.widen or 1) < 1 or (given.memory or 1) <= 0 or (given.seconds or 1) <= 0:
        parser.error("--widen, --memory and --seconds must be more than 0")
    return given


def size_of(given: argparse.Namespace) -> Size:
    size = FAKE if given.fake else Size()
    if given.quick:
        size = replace(size, **QUICK)
    changes = {"widen": given.widen, "seconds": given.seconds, "memory": given.memory and int(given.memory * GIB)}
    return replace(size, **{name: value for name, value in changes.items() if value})


def stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    given = arguments()
    if lacking := missing():
        print(lacks(lacking), file=sys.stderr)
        return 1
    prepare_path(given.fake)
    # Whoever ends this gets the table of what was measured until then.
    signal.signal(signal.SIGTERM, stop)
    size = size_of(given)
    runs, exact = chosen(given.only, given.quick)
    runs = simulated(runs) if given.fake else runs
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    folder = given.keep or gpu_place.place(size, codecs_of(runs))
    results = Results(size, given.json)
    try:
        return check(Work(runs, exact, given.profile, folder.absolute(), results))
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def check(work: Work) -> int:
    results = work.results
    os.environ["UNDERSTUDY_CACHE"] = str(work.folder / "cache")
    try:
        work, trouble = describe(work)
        if trouble:
            print(f"gpu_check: there is no usable CUDA GPU here ({trouble}); {INSTEAD}.", file=sys.stderr)
            return 1
        late = prepare(work)
        if not any(what.startswith("stores") for what in results.cut):
            speed(work)
        finish(work, late)
    except KeyboardInterrupt:
        results.cut_short("it was ended from outside")
    results.write()
    print(printed(results.figures()))
    return 1 if results.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
