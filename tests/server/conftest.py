"""A real server in a thread of this process, on a small random model; and the texts that the model gives without a server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from tests.tiny import save
from understudy import LLM
from understudy.server.app import create_app
from understudy.server.connections import TimedConnection
from understudy.server.settings import Settings
from understudy.text import TextStream

Start = Callable[..., "Running"]


class Running:
    """A server under way: `url` without a path, and the service of the model that it began with, if there is one."""

    def __init__(self, app: Any, settings: Settings, port: int = 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.models = app.state.models
        self.service: Any = next((served.service for served in self.models.loaded.values()), None)
        connection: Any = partial(TimedConnection, settings.receive_timeout)
        self.server = uvicorn.Server(
            uvicorn.Config(app, port=self.port, http=connection, loop="asyncio", log_level="error", timeout_graceful_shutdown=5)
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=60)
        until(lambda: self.server.started)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def kill(self, freed: Callable[[], None] = lambda: None) -> None:
        """End it without waiting for what runs: connections break. `freed` then lets passes go on that the test holds back."""
        self.server.force_exit = True
        self.stop()
        freed()
        # A process that is killed takes its threads along; here they would go on to run the passes of other tests.
        for served in self.models.loaded.values():
            served.service.close()

    def stop(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served")
    save(directory, "llama-tied", torch.bfloat16, max_position_embeddings=1024)
    return directory


@contextmanager
def loaded(checkpoint: Path | None, factory: pytest.TempPathFactory, **options: Any) -> Iterator[LLM]:
    """The model with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_CACHE", str(factory.mktemp("cache")))
        with LLM(checkpoint, **{"context": 512, **options}) as model:
            yield model


@pytest.fixture(scope="session")
def llm(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with loaded(checkpoint, tmp_path_factory, rows=3, resident="none") as model:
        yield model


@pytest.fixture(scope="session")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The same model without drafting, one text at a time."""
    with loaded(checkpoint, tmp_path_factory, rows=1, method="none") as model:
        yield model


@pytest.fixture(scope="session")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model with room for the conversations of agents."""
    directory = tmp_path_factory.mktemp("roomy")
    save(directory, "llama-tied", torch.bfloat16, max_position_embeddings=8192)
    with loaded(directory, tmp_path_factory, rows=1, context=8192) as model:
        yield model


@pytest.fixture
def agents(roomy: LLM) -> Iterator[Running]:
    """A server of the model with room."""
    chosen = Settings(model_name="tiny")
    running = Running(create_app(roomy, chosen), chosen)
    yield running
    running.stop()


@pytest.fixture
def start(llm: LLM) -> Iterator[Start]:
    """Starts servers, and stops them at the end of the test."""
    servers: list[Running] = []

    def begin(port: int = 0, **settings: Any) -> Running:
        chosen = Settings(**{"model_name": "tiny", **settings})
        servers.append(Running(create_app(llm, chosen), chosen, port))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


def slowed(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Passes wait for this event."""
    go = threading.Event()
    step = llm.engine.step

    def waiting(*arguments: Any) -> Any:
        go.wait(20)
        return step(*arguments)

    monkeypatch.setattr(llm.engine, "step", waiting)
    return go


@pytest.fixture
def server(start: Start) -> Running:
    return start()


@pytest.fixture
def start_exact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the same model in float32, with drafting."""
    with loaded(checkpoint, tmp_path_factory, rows=3, dtype="float32") as model:
        settings = Settings(model_name="tiny")
        running = Running(create_app(model, settings), settings)
        yield running
        running.stop()


class ScriptedText(TextStream):
    """A reply whose text is decided beforehand: each token stands for the next of `pieces`, and the last one ends it."""

    def __init__(self, llm: LLM, pieces: Sequence[str], stops: Sequence[str]):
        super().__init__(llm.tokenizer, stops)
        self._left = list(pieces)
        self._tokens: Any = self

    def add(self, token: int) -> str:
        return self._left.pop(0)

    def tail(self) -> str:
        return ""

    finish = tail

    def feed(self, token: int) -> bool:
        found = super().feed(token)
        return found or not self._left


def scripted(llm: LLM, monkeypatch: pytest.MonkeyPatch, *replies: Sequence[str]) -> list[dict[str, Any]]:
    """The model says `replies`, one for each request in turn, in the given pieces; the last one again and again.

    Passes, drafts and limits are those of the model. Returns how each request was made, in order."""
    request = llm.request
    asked: list[dict[str, Any]] = []

    def made(ids: Sequence[int], params: Any, **options: Any) -> Any:
        found = request(ids, params, **options)
        reply = replies[min(len(asked), len(replies) - 1)]
        asked.append({"prompt": llm.tokenizer.decode(ids), "params": params, **options})
        found.reply = ScriptedText(llm, reply, params.stop)
        found.sequence.stops = found.reply.feed
        found.sequence.stop_ids = frozenset()
        return found

    monkeypatch.setattr(llm, "request", made)
    return asked
