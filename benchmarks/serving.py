"""What the server costs: tokens a second of streams over HTTP against the engine alone, and how late a piece of text is.

    python benchmarks/serving.py [MODEL] [--tokens 192] [--turns 7] [--clients 1,4] [--method M] [--json FILE]

One model in one process serves both ways in turns (server, engine, server, ...), and the clients are a process of their own. Trees
have a forced shape, so that both ways run the very same passes: a tree that measured seconds decide would be another one in
each turn. What a turn took is told in seconds and in CPU seconds, which say more where the machine has other work."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn

from understudy import LLM, SamplingParams
from understudy.server.app import create_app
from understudy.server.connections import TimedConnection
from understudy.server.settings import Settings
from understudy.service import Call

PROMPTS = ("def mean(values):\n", "class Point:\n", "import json\n\ndef load(", "for i in range(", "def sort(", "x = [")


@dataclass(frozen=True)
class Turn:
    """What one turn took: all of its requests, one way."""

    # Of the clock, from the first request to the last token.
    seconds: float
    # CPU seconds of the process, the clients not included, and those of the thread of the event loop.
    cpu: float
    loop: float
    passes: int
    tokens: int


@dataclass
class Figures:
    """What one number of clients gave, turn by turn."""

    clients: int
    engine: list[Turn] = field(default_factory=list)
    server: list[Turn] = field(default_factory=list)
    # Seconds from the end of a pass to its text at the client.
    late: list[float] = field(default_factory=list)

    def ratio(self, figure: Callable[[Turn], float]) -> float:
        """The median of the server's figure over the engine's, each turn against the one beside it."""
        return median(figure(server) / figure(engine) for server, engine in zip(self.server, self.engine, strict=True))

    def row(self) -> str:
        """A line of the table in RESULTS.md."""
        rates = [median(turn.tokens / turn.seconds for turn in turns) for turns in (self.engine, self.server)]
        passes = ["/".join(str(turn.passes) for turn in turns) for turns in (self.engine, self.server)]
        own = median(server.loop / engine.cpu for server, engine in zip(self.server, self.engine, strict=True))
        late = sorted(self.late)
        cells = [
            str(self.clients), f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{1 / self.ratio(lambda turn: turn.seconds):.3f}",
            f"{self.ratio(lambda turn: turn.cpu):.3f}", f"{own:.2%}", f"{median(late) * 1e3:.1f} ms",
            f"{late[int(len(late) * 0.99)] * 1e3:.1f} ms", " and ".join(sorted(set(passes))),
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| at once | engine alone, tok/s | server, tok/s | ratio | CPU seconds, server to engine | event loop, of the engine's CPU "
    "| text at the client after its pass, median | 99th percentile | passes |\n|---|---|---|---|---|---|---|---|---|"
)


class Serving:
    """A server for `llm` in a thread, while it is entered."""

    def __init__(self, llm: LLM):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = Settings(model_name="bench")
        connection: Any = partial(TimedConnection, settings.receive_timeout)
        config = uvicorn.Config(create_app(llm, settings), http=connection, port=self.port, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Serving:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()

    @property
    def cpu(self) -> float:
        """CPU seconds of the event loop."""
        assert self.thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))


class Clients:
    """A process that streams `tokens` tokens after each of `prompts` at once, whenever it is told to."""

    def __init__(self, prompts: Sequence[str], tokens: int):
        words = [
            sys.executable,
            str(Path(__file__).with_name("serving_client.py")),
            json.dumps([list(prompts), tokens]),
        ]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def stream(self, port: int) -> list[list[float]]:
        """When the request of each prompt was sent, and when each piece of its text arrived, by the monotonic clock."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(port, file=self.process.stdin, flush=True)
        found: list[list[float]] = json.loads(self.process.stdout.readline())
        return found


@contextlib.contextmanager
def pass_ends() -> Iterator[dict[str, list[float]]]:
    """By prompt, as the repr of its tokens: when the passes ended that gave it text, by the monotonic clock."""
    ended: dict[str, list[float]] = {}
    hears: Any = Call
    tell = hears._tell

    def noting(call: Call, index: int) -> None:
        sequence = call.requests[index].sequence
        ended.setdefault(repr(sequence.tokens[: sequence.prompt_length]), []).append(time.monotonic())
        tell(call, index)

    hears._tell = noting
    try:
        yield ended
    finally:
        hears._tell = tell


class Bench:
    """One model that `clients` ask for `tokens` tokens each, alone and through a server."""

    def __init__(self, llm: LLM, clients: int, tokens: int):
        self.llm = llm
        self.tokens = tokens
        self.prompts = [PROMPTS[i % len(PROMPTS)] + " " * (i // len(PROMPTS)) for i in range(clients)]

    def measure(self, turns: int) -> Figures:
        """Both ways in turns, after one of each that does not count."""
        found = Figures(len(self.prompts))
        with Clients(self.prompts, self.tokens) as clients:
            for number in range(turns + 1):
                server, late = self._served(clients)
                engine = self._alone()
                if number:
                    found.server.append(server)
                    found.engine.append(engine)
                    found.late += late
        return found

    def _alone(self) -> Turn:
        params = SamplingParams(max_new_tokens=self.tokens, ignore_eos=True)
        cpu, passes = self._begin()
        start = time.monotonic()
        self.llm.generate(self.prompts, params)
        seconds = time.monotonic() - start
        return self._turn(seconds, time.process_time() - cpu, 0.0, passes)

    def _served(self, clients: Clients) -> tuple[Turn, list[float]]:
        """The turn, and how late each piece of text was. The server is there for this turn alone: its thread would run passes of
        the other way too."""
        with pass_ends() as ended, Serving(self.llm) as serving:
            cpu, passes = self._begin()
            loop = serving.cpu
            arrived = clients.stream(serving.port)
            cpu, loop = time.process_time() - cpu, serving.cpu - loop
        late = []
        for prompt, times in zip(self.prompts, arrived, strict=True):
            since = ended[repr(self.llm.prompt_ids(prompt))]
            late += [at - end for at, end in zip(times[1:], since, strict=False)]
        seconds = max(times[-1] for times in arrived) - min(times[0] for times in arrived)
        return self._turn(seconds, cpu, loop, passes), late

    def _begin(self) -> tuple[float, int]:
        """CPU seconds and passes of the process so far. What the other way has left in the cache is forgotten: both begin alike."""
        for row in range(self.llm.plan.rows):
            self.llm.engine.forget(row)
        self.llm.settle()
        return time.process_time(), self.llm.engine.clock.passes

    def _turn(self, seconds: float, cpu: float, loop: float, passes: int) -> Turn:
        """A turn that took so long, and began after so many `passes`."""
        return Turn(seconds, cpu, loop, self.llm.engine.clock.passes - passes, len(self.prompts) * self.tokens)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="the server against the engine alone")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--clients", default="1,4")
    parser.add_argument("--method", default="substitute:width=2,depth=16")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    measured = []
    print(HEAD, flush=True)
    with LLM(args.model, rows=8, context=512, resident="none", method=args.method) as llm:
        for clients in map(int, args.clients.split(",")):
            found = Bench(llm, clients, args.tokens).measure(args.turns)
            print(found.row(), flush=True)
            measured.append(found)
    if args.json:
        args.json.write_text(json.dumps([asdict(found) for found in measured], indent=1))


if __name__ == "__main__":
    main()
