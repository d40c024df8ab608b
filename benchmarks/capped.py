"""Runs one command inside a fresh cgroup with a memory limit, and reports what the kernel counted.

    python benchmarks/capped.py --memory 3.5GB -- understudy run MODEL ...

The limit covers everything the command holds, its page cache included. The page cache is dropped first where that is
allowed (and said where it is not), so that no method finds its weights already in memory. Only processes of that cgroup
are ever touched.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
DROP = Path("/proc/sys/vm/drop_caches")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
ENTER = 'echo $$ > "$0" && exec "$@"'
"""A shell enters the cgroup before it becomes the command, so nothing the command allocates is counted elsewhere."""


@dataclass(frozen=True)
class Files:
    """The names under which one version of cgroups keeps what is needed here."""

    limit: str
    peak: str
    anonymous: str
    failures: str


NAMES = {
    1: Files("memory.limit_in_bytes", "memory.max_usage_in_bytes", "rss", "memory.failcnt"),
    2: Files("memory.max", "memory.peak", "anon", "memory.events"),
}


@dataclass(frozen=True)
class Capped:
    """How a command went under its limit."""

    returncode: int
    output: str
    seconds: float
    limit_bytes: int
    peak_bytes: int
    """The kernel's own highest count, page cache included."""
    peak_anonymous_bytes: int
    """The highest sample of what the processes hold themselves, without page cache."""
    page_cache_dropped: bool
    killed_for_memory: bool


def size(text: str) -> int:
    """Bytes in `3.5GB`, `512MiB` or `1000000`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if match is None or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it like 3.5GB or 512MiB")
    return int(float(match[1]) * UNITS[match[2]])


def version() -> int:
    """1 or 2: the kind of cgroup that this process may create, 0 where it may create none."""
    if os.access(V1, os.W_OK) and (V1 / NAMES[1].limit).exists():
        return 1
    controllers = V2 / "cgroup.subtree_control"
    if os.access(V2, os.W_OK) and controllers.exists() and "memory" in controllers.read_text().split():
        return 2
    return 0


def drop_page_cache() -> bool:
    """Writes dirty pages out and forgets clean ones. False where this is not permitted."""
    os.sync()
    try:
        DROP.write_text("3\n")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def cgroup(limit: int, kind: int) -> Iterator[Path]:
    """A fresh memory cgroup with a limit, emptied and removed at the end."""
    folder = (V1 if kind == 1 else V2) / f"understudy-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        (folder / NAMES[kind].limit).write_text(str(limit))
        swap = folder / ("memory.memsw.limit_in_bytes" if kind == 1 else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(limit) if kind == 1 else "0")
        yield folder
    finally:
        for _ in range(100):
            left = (folder / "cgroup.procs").read_text().split()
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            if not left:
                break
            time.sleep(0.05)
        folder.rmdir()


def counter(folder: Path, file: str, key: str = "") -> int:
    """A number from one of the cgroup's files: the whole file, or the line that begins with `key`."""
    for line in (folder / file).read_text().splitlines():
        name, _, value = line.rpartition(" ")
        if name == key:
            return int(value)
    return 0


def watch(folder: Path, key: str, stop: threading.Event, highest: list[int]) -> None:
    while not stop.wait(0.05):
        highest[0] = max(highest[0], counter(folder, "memory.stat", key))


def run(
    command: Sequence[str],
    limit: int,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float | None = None,
    cold: bool = True,
) -> Capped:
    """Runs `command` under `limit` bytes with a cold page cache. Its stderr is passed through, its stdout returned."""
    kind = version()
    if not kind:
        raise SystemExit("capped: no writable memory cgroup here; run as root, or in a container that has one")
    names = NAMES[kind]
    dropped = cold and drop_page_cache()
    if cold and not dropped:
        print("capped: not permitted to drop the page cache; the first reads may be warm", file=sys.stderr)
    stop, highest = threading.Event(), [0]
    with cgroup(limit, kind) as inside, tempfile.TemporaryFile("w+", encoding="utf-8") as captured:
        watcher = threading.Thread(target=watch, args=(inside, names.anonymous, stop, highest))
        watcher.start()
        start = time.monotonic()
        shell = ["/bin/sh", "-c", ENTER, str(inside / "cgroup.procs"), *command]
        process = subprocess.Popen(shell, stdout=captured, env=environment, cwd=folder)
        try:
            returncode = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            returncode = process.wait()
        finally:
            stop.set()
            watcher.join()
        seconds = time.monotonic() - start
        captured.seek(0)
        out_of_memory = counter(inside, "memory.oom_control" if kind == 1 else names.failures, "oom_kill")
        peak = counter(inside, names.peak)
        text = captured.read()
    return Capped(returncode, text, seconds, limit, peak, highest[0], dropped, out_of_memory > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a command under a memory limit; its stdout passes through.")
    parser.add_argument("--memory", type=size, required=True, help="like 3.5GB or 512MiB")
    parser.add_argument("--warm", action="store_true", help="leave the page cache as it is")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("give a command after --")
    result = run(command, given.memory, cold=not given.warm)
    sys.stdout.write(result.output)
    figures = {name: value for name, value in asdict(result).items() if name != "output"}
    print(json.dumps(figures), file=sys.stderr)
    sys.exit(result.returncode if result.returncode >= 0 else 128 - result.returncode)


if __name__ == "__main__":
    main()
