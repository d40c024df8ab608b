"""What the server costs: tokens a second of streams over HTTP against the engine alone, and how late a piece of text is.

    python benchmarks/serving.py [MODEL] [--tokens 96] [--turns 3] [--clients 1,4] [--json FILE]

One model in one process, both ways in turns, the clients in threads of their own."""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import uvicorn

from understudy import LLM, SamplingParams
from understudy.server.app import create_app
from understudy.server.settings import Settings
from understudy.service import Call

PROMPTS = ("def mean(values):\n", "class Point:\n", "import json\n\ndef load(", "for i in range(", "def sort(", "x = [")


@dataclass
class Figures:
    """What one number of clients gave, turn by turn."""

    clients: int
    engine: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    # Seconds from the end of a pass to its text at the client.
    late: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return median(self.server) / median(self.engine)

    def line(self) -> str:
        late = sorted(self.late)
        high = late[int(len(late) * 0.99)] if late else 0.0
        return (
            f"{self.clients} at once: engine {median(self.engine):.2f} tok/s, server {median(self.server):.2f} tok/s"
            f" ({self.ratio:.3f}); text is {median(late) * 1e3:.1f} ms late, {high * 1e3:.1f} ms at the 99th percentile"
        )


class Serving:
    """A server for `llm` in a thread, while it is entered."""

    def __init__(self, llm: LLM):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        app = create_app(llm, Settings(model_name="bench"))
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Serving:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()

    def stream(self, prompt: str, tokens: int) -> list[float]:
        """When each piece of the text of `prompt` arrived."""
        body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, "return_token_ids": True}
        arrived = []
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=600) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["finish_reason"] is None:
                    arrived.append(time.perf_counter())
        return arrived


def turn(llm: LLM, prompts: Sequence[str], tokens: int, found: Figures) -> None:
    """The engine alone, then the server, on the same prompts."""
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    begun = time.perf_counter()
    llm.generate(list(prompts), params)
    found.engine.append(len(prompts) * tokens / (time.perf_counter() - begun))
    # By prompt: when the passes ended that gave it text.
    ended: dict[tuple[int, ...], list[float]] = {}
    hears: Any = Call
    tell = hears._tell

    def noting(call: Call, index: int) -> None:
        sequence = call.requests[index].sequence
        ended.setdefault(tuple(sequence.tokens[: sequence.prompt_length]), []).append(time.perf_counter())
        tell(call, index)

    hears._tell = noting
    try:
        with Serving(llm) as serving, ThreadPoolExecutor(len(prompts)) as pool:
            begun = time.perf_counter()
            arrived = list(pool.map(lambda prompt: serving.stream(prompt, tokens), prompts))
            found.server.append(len(prompts) * tokens / (time.perf_counter() - begun))
    finally:
        hears._tell = tell
    for prompt, times in zip(prompts, arrived, strict=True):
        passes = ended[tuple(llm.prompt_ids(prompt))]
        found.late += [at - since for at, since in zip(times, passes, strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description="the server against the engine alone")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", default="1,4")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured = []
    with LLM(args.model, rows=8, context=512, resident="none") as llm:
        for clients in map(int, args.clients.split(",")):
            prompts = [PROMPTS[i % len(PROMPTS)] + " " * (i // len(PROMPTS)) for i in range(clients)]
            turn(llm, prompts, args.tokens, Figures(clients))
            found = Figures(clients)
            for _ in range(args.turns):
                turn(llm, prompts, args.tokens, found)
            print(found.line(), flush=True)
            measured.append(found)
    if args.json:
        args.json.write_text(json.dumps([asdict(found) for found in measured], indent=1))


if __name__ == "__main__":
    main()
