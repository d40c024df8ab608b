"""How fast a model writes on a machine that is not idle, against the same machine idle, in turns.

    python benchmarks/busy.py demo --rounds 3 --seconds 8 --json busy.json

The cases: alone; beside one busy process for each processor, of the same and of low priority; two Understudy processes at once;
within a quota of half a processor (a control group of version 1 or 2, where this user may make one; it is removed afterwards).
Each round runs every case, and a ratio is the median over rounds of the ratio to idle within a round, so that what
disturbs the machine disturbs all. Beside speed it says what waiting costs: processor seconds and context switches a token."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PROMPT = "def read_table(path):\n"
# A process that keeps one processor busy until it is ended, or the one that started it is gone.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    sum(range(100_000))
"""
IDLE = "idle"


def write(model: str, resident: str, seconds: float) -> dict[str, float]:
    """Figures of one process that writes for about `seconds`: rates, and counts a token.

    It says `ready` once the model is loaded, and starts when it reads a line."""
    from understudy.frontends import SPINS

    # As the command line has it; read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    import torch

    from understudy import LLM, SamplingParams

    with LLM(model, resident=resident, context=512) as llm:
        params = SamplingParams(max_new_tokens=128, ignore_eos=True)
        llm.generate(PROMPT, params)
        print("ready", flush=True)
        sys.stdin.readline()
        before, start, tokens = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            tokens += sum(len(step.token_ids) for step in llm.stream(PROMPT, params))
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "tokens_per_second": tokens / wall,
        "processor_seconds_per_token": processor / tokens,
        "processors": processor / wall,
        "voluntary_switches_per_token": (after.ru_nvcsw - before.ru_nvcsw) / tokens,
        "involuntary_switches_per_token": (after.ru_nivcsw - before.ru_nivcsw) / tokens,
        "threads": torch.get_num_threads(),
    }


class Writer:
    """A process that has loaded the model and waits to be told to write."""

    def __init__(self, given: argparse.Namespace, group: Path | None = None) -> None:
        command = [sys.executable, __file__, given.model, "--resident", given.resident, "--seconds", str(given.seconds), "--write"]
        command += ["--group", str(group)] if group else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit("A process that was to write ended early; what it said is above.")

    def start(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def figures(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self.process.communicate()[0])
        return found


@contextmanager
def half_a_processor() -> Iterator[Path | None]:
    """A control group that may use half a processor; None where none can be made."""
    old, new = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    first = (old / "cpu.cfs_quota_us").exists()
    group = (old if first else new) / f"understudy-busy-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        name, text = ("cpu.cfs_quota_us", "50000") if first else ("cpu.max", "50000 100000")
        limit = group / name
        if limit.exists():
            limit.write_text(text)
        yield group if limit.exists() else None
    finally:
        group.rmdir()


@contextmanager
def others(count: int, nice: int) -> Iterator[None]:
    """`count` busy processes of this priority, ended afterwards."""
    running = [subprocess.Popen(["nice", "-n", str(nice), sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def case(name: str, given: argparse.Namespace) -> list[dict[str, float]]:
    """Figures of the processes that wrote in this case; none where it cannot be run here."""
    with ExitStack() as stack:
        group = stack.enter_context(half_a_processor()) if name == "half" else None
        if name == "half" and group is None:
            return []
        writers = [Writer(given, group) for _ in range(2 if name == "two" else 1)]
        for writer in writers:
            stack.callback(writer.process.wait)
            stack.callback(writer.process.kill)
        for writer in writers:
            writer.wait()
        if name in ("busy", "niced"):
            stack.enter_context(others(len(os.sched_getaffinity(0)), 19 if name == "niced" else 0))
        for writer in writers:
            writer.start()
        return [writer.figures() for writer in writers]


def table(rounds: list[dict[str, list[dict[str, float]]]]) -> list[dict[str, Any]]:
    """A line for each case: medians over rounds; of several processes the slowest counts, as each is to be fast enough."""
    lines = []
    for name in rounds[0]:
        slowest = [min(turn[name], key=lambda one: one["tokens_per_second"]) for turn in rounds if turn[name]]
        if not slowest:
            continue
        idle = [turn[IDLE][0]["tokens_per_second"] for turn in rounds if turn[name]]
        ratios = [one["tokens_per_second"] / base for one, base in zip(slowest, idle, strict=True)]
        medians = {key: statistics.median(one[key] for one in slowest) for key in slowest[0]}
        lines.append({"case": name, "of_idle": statistics.median(ratios), "ratios": ratios, **medians})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed on a busy machine, against the same machine idle.")
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--resident", default="none", help="exact weights in memory: none, auto or whole")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each process writes, at least")
    parser.add_argument("--cases", default="idle,busy,niced,two,half")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.group:
        (given.group / "cgroup.procs").write_text(str(os.getpid()))
    if given.write:
        print(json.dumps(write(given.model, given.resident, given.seconds)))
        return
    names = list(dict.fromkeys([IDLE, *given.cases.split(",")]))
    lines = table([{name: case(name, given) for name in names} for _ in range(given.rounds)])
    print("| case | tok/s | of idle | processors | CPU ms a token | switches a token: voluntary, involuntary | threads |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line['case']} | {line['tokens_per_second']:.1f} | {line['of_idle']:.2f} | {line['processors']:.2f} "
            f"| {1e3 * line['processor_seconds_per_token']:.1f} | {line['voluntary_switches_per_token']:.1f}, "
            f"{line['involuntary_switches_per_token']:.1f} | {line['threads']:.0f} |"
        )
    if given.json:
        given.json.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
