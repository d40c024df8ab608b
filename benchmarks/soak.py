"""Many clients at one server for minutes: they leave, try again, send nonsense and long prompts. Every answer must be the text that
the model gives alone, nothing may hang, and memory must not grow.

    python benchmarks/soak.py [MODEL] [--seconds 600] [--clients 64] [--json FILE]     (make soak)

Starts `understudy serve` with weights streamed from disk, and ends with status 1 if anything went wrong."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

# Seconds after which a request that has no answer counts as stuck.
STUCK = 300.0
# Growth of memory after the warm-up, as a share, and how much of the time the warm-up and each end of the comparison take.
GROWTH, WARM_UP, WINDOW = 0.02, 0.3, 0.1
BAD_BODIES = (
    b"{",
    b"[]",
    b'{"prompt": 5}',
    b'{"prompt": ""}',
    b'{"prompt": "x", "temperature": -1}',
    b'{"prompt": "x", "n": 0}',
    b'{"prompt": "x", "max_tokens": "many"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": [99999999]}',
    b'{"prompt": "x", "model": "another"}',
)


@dataclass(frozen=True)
class Job:
    """A text completion, and the text that the model gives alone."""

    prompt: str
    count: int
    temperature: float
    expected: str

    def body(self, stream: bool) -> dict[str, Any]:
        sampling = {"temperature": self.temperature, "seed": 7, "max_tokens": self.count, "ignore_eos": True}
        return {"prompt": self.prompt, "stream": stream, **sampling}


@dataclass
class Storm:
    """What clients did, and what went wrong."""

    url: str
    jobs: Sequence[Job]
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    # Seconds of answers that were read to their end.
    seconds: list[float] = field(default_factory=list)

    async def run(self, clients: int, seconds: float) -> None:
        """`clients` at once for `seconds`; each finishes what it has begun."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(random.Random(self.seed * 1000 + i), end) for i in range(clients)))

    async def _client(self, chance: random.Random, end: float) -> None:
        acts: dict[Callable[[httpx.AsyncClient, random.Random], Awaitable[None]], int] = {
            self.whole: 4, self.streamed: 4, self.leaves_stream: 3, self.leaves_whole: 3, self.tries_again: 2,
            self.nonsense: 2, self.half_a_body: 1,
        }  # fmt: skip
        async with httpx.AsyncClient(base_url=self.url, timeout=STUCK) as http:
            while time.monotonic() < end:
                act = chance.choices(list(acts), list(acts.values()))[0]
                try:
                    await act(http, chance)
                except httpx.TimeoutException:
                    self.failures.append(f"{act.__name__}: no answer in {STUCK:.0f} s")
                except httpx.HTTPError as error:
                    self.failures.append(f"{act.__name__}: {error!r}")

    async def whole(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        job = chance.choice(self.jobs)
        begun = time.monotonic()
        while (response := await http.post("/v1/completions", json=job.body(False))).status_code == 503:
            await self._turned_away(chance)
        self._compare("whole", job, response.json()["choices"][0]["text"] if response.status_code == 200 else response.text)
        self.seconds.append(time.monotonic() - begun)

    async def streamed(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        job = chance.choice(self.jobs)
        while True:
            async with http.stream("POST", "/v1/completions", json=job.body(True)) as response:
                if response.status_code == 503:
                    await self._turned_away(chance)
                    continue
                lines = [line async for line in response.aiter_lines()]
            break
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            self.failures.append(f"streamed: a stream ended with {events[-1:]}")
            return
        self._compare("streamed", job, "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]))

    async def leaves_stream(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        pieces = chance.randrange(6)
        async with http.stream("POST", "/v1/completions", json=chance.choice(self.jobs).body(True)) as response:
            async for _ in response.aiter_lines():
                if not pieces:
                    break
                pieces -= 1
        self.done["left"] += 1

    async def leaves_whole(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        try:
            async with asyncio.timeout(chance.random() * 2):
                await http.post("/v1/completions", json=chance.choice(self.jobs).body(False))
        except TimeoutError:
            self.done["left"] += 1

    async def tries_again(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        for _ in range(chance.randrange(1, 4)):
            await self.leaves_whole(http, chance)
        await self.whole(http, chance)
        self.done["tried again"] += 1

    async def nonsense(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        body = chance.choice(BAD_BODIES)
        response = await http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        if not 400 <= response.status_code < 500 or "error" not in response.json():
            self.failures.append(f"nonsense: {body!r} was answered with {response.status_code}")
        self.done["nonsense"] += 1

    async def half_a_body(self, http: httpx.AsyncClient, chance: random.Random) -> None:
        address = httpx.URL(self.url)
        _, writer = await asyncio.open_connection(address.host, address.port)
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"
        writer.write(head.encode() + b'{"prompt": "' + b"x" * chance.randrange(400))
        await writer.drain()
        writer.close()
        self.done["half a body"] += 1

    async def _turned_away(self, chance: random.Random) -> None:
        self.done["turned away"] += 1
        await asyncio.sleep(0.1 + chance.random())

    def _compare(self, how: str, job: Job, text: str) -> None:
        self.done[how] += 1
        if text != job.expected:
            self.failures.append(f"{how}: {job.prompt[:20]!r} gave {text[:60]!r}, alone it gives {job.expected[:60]!r}")


def made_jobs(llm: Any, prompts: Sequence[str], longest: str) -> list[Job]:
    """Jobs of `prompts` and of one that is `longest`, with the texts of `llm`, which should run them one by one undrafted."""
    from understudy import SamplingParams

    asked = [(prompt, 4 + 9 * i, 0.8 * (i % 2)) for i, prompt in enumerate(prompts)]
    jobs = []
    for prompt, count, temperature in (*asked, (longest, 6, 0.0), (longest[5:], 3, 0.8)):
        params = SamplingParams(max_new_tokens=count, temperature=temperature, seed=7, ignore_eos=True)
        jobs.append(Job(prompt, count, temperature, llm.generate(prompt, params)[0].text))
    return jobs


async def drained(url: str) -> bool:
    """Whether the server is well and, within some seconds, has nothing to do."""
    async with httpx.AsyncClient(base_url=url, timeout=STUCK) as http:
        for _ in range(200):
            text = (await http.get("/metrics")).text
            busy = [line for line in text.splitlines() if line.startswith("understudy:num_requests_")]
            if len(busy) >= 2 and all(line.endswith(" 0.0") for line in busy):
                return (await http.get("/health")).status_code == 200
            await asyncio.sleep(0.1)
    return False


async def watched(storm: Storm, process: psutil.Process, clients: int, seconds: float) -> list[int]:
    """The storm, with the memory of the server at each second."""
    running = asyncio.ensure_future(storm.run(clients, seconds))
    held = []
    while not running.done():
        held.append(process.memory_info().rss)
        await asyncio.wait((running,), timeout=1.0)
    await running
    return held


def growth(held: Sequence[int]) -> float:
    """How much memory grew after the warm-up, as a share: the medians of its first and last seconds."""
    count = max(int(len(held) * WINDOW), 1)
    first = int(len(held) * WARM_UP)
    return median(held[-count:]) / median(held[first : first + count]) - 1


@dataclass
class Outcome:
    """What a run showed."""

    clients: int
    seconds: float
    done: dict[str, int]
    failures: list[str]
    drained: bool
    median_seconds: float
    memory_bytes: int
    memory_growth: float

    @property
    def good(self) -> bool:
        return not self.failures and self.drained and self.memory_growth <= GROWTH


def soak(model: str | None, clients: int, seconds: float, rows: int) -> Outcome:
    """Start a server, let clients storm it, and end it."""
    from understudy import LLM

    # A text in the manner of the built-in model, which knows Python.
    prompts = [f"def {name}(values):\n    " for name in ("mean", "sort", "find", "count", "merge", "split", "join", "pairs")]
    options = {"context": 1024}
    with LLM(model, method="none", rows=1, **options) as alone:
        jobs = made_jobs(alone, prompts, "x = [1, 2, 3]\n" * 50)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [] if model is None else [model]
    command = [sys.executable, "-m", "understudy", "serve", *words, "--port", str(port), "--rows", str(rows)]
    server = subprocess.Popen([*command, "--resident", "none", "--context", "1024", "--quiet"])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, server)
        storm = Storm(url, jobs)
        held = asyncio.run(watched(storm, psutil.Process(server.pid), clients, seconds))
        empty = asyncio.run(drained(url))
    finally:
        server.terminate()
        server.wait(60)
    times = storm.seconds or [0.0]
    return Outcome(clients, seconds, dict(storm.done), storm.failures, empty, median(times), max(held), growth(held))


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server has loaded its model."""
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server ended before its model was loaded")


def main() -> int:
    parser = argparse.ArgumentParser(description="many clients at one server")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    outcome = soak(args.model, args.clients, args.seconds, args.rows)
    if args.json:
        args.json.write_text(json.dumps(asdict(outcome), indent=1))
    print(f"{outcome.clients} clients, {outcome.seconds:.0f} s: {outcome.done}")
    print(f"median answer {outcome.median_seconds:.1f} s, memory {outcome.memory_bytes >> 20} MiB, {outcome.memory_growth:+.2%}")
    print(f"failures: {len(outcome.failures)}, queue drained: {outcome.drained}")
    for line in outcome.failures[:20]:
        print(f"  {line}")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    raise SystemExit(main())
