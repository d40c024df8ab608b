"""What Ray costs: the same requests to one server, and to replicas behind Ray Serve on the same machine, in turns.

    python benchmarks/replicas.py [--requests 200] [--replicas 2] [--json replicas.json]

Prints milliseconds a request (median; the built-in model, one token, one request at a time), processor milliseconds a request of
all processes, the memory that Ray's own processes hold, and the seconds until each served."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

OPTIONS = ("--memory", "1GiB", "--rows", "4", "--context", "512", "--quiet")
# Seconds that a server may take to load.
PATIENCE = 300


class Served:
    """One way of serving, as a process of its own."""

    def __init__(self, *words: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "understudy", "serve", "demo", "--port", str(port), *OPTIONS, *words]
        began = time.monotonic()
        self.process = psutil.Popen(command)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        while not self._well():
            assert self.process.is_running() and time.monotonic() < began + PATIENCE, "it does not serve"
            time.sleep(0.1)
        self.loading = time.monotonic() - began
        self.times: list[float] = []

    def _well(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/health").status_code == 200
        return False

    def ask(self, number: int) -> None:
        began = time.perf_counter()
        found = self.http.post("/v1/completions", json={"prompt": f"def f{number}(", "max_tokens": 1})
        assert found.status_code == 200, found.text
        self.times.append(time.perf_counter() - began)

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """Processor seconds so far of all its processes."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(own.user + own.system for own in times)

    def own_memory(self) -> int:
        """Bytes that its processes hold, but for those that hold a model."""
        others = [process for process in self.processes()[1:] if "ServeReplica" not in "".join(process.cmdline()[:1])]
        return sum(process.memory_info().rss for process in others)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args()
    one = Served()
    many = Served("--replicas", str(args.replicas), "--replica-cpus", "1")
    found: dict[str, Any] = {}
    try:
        for served in (one, many):
            for number in range(20):
                served.ask(number)
            served.times.clear()
        before = [served.cpu() for served in (one, many)]
        # In turns, so that what else the machine does is the same for both.
        for number in range(args.requests):
            one.ask(number)
            many.ask(number)
        for name, served, cpu in zip(("one server", "replicas"), (one, many), before, strict=True):
            milliseconds = 1e3 * (served.cpu() - cpu) / args.requests
            found[name] = {"ms": 1e3 * statistics.median(served.times), "cpu_ms": milliseconds, "load_s": served.loading}
        found["ray_bytes"] = many.own_memory()
    finally:
        one.stop()
        many.stop()
    for name in ("one server", "replicas"):
        row = found[name]
        print(f"{name}: {row['ms']:.1f} ms a request, {row['cpu_ms']:.1f} ms of processors, serves after {row['load_s']:.0f} s")
    print(f"Ray's own processes: {found['ray_bytes'] / 2**20:.0f} MiB")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
