"""Several models behind one server: who is loaded when, who waits for how long, and what clients hear meanwhile."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.conftest import Running, loaded, until
from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.api.errors import ApiError
from understudy.errors import CheckpointError, UnderstudyError
from understudy.server import metrics
from understudy.server.app import create_app_of
from understudy.server.models import ServedModels
from understudy.server.settings import Settings
from understudy.service import Unavailable
from understudy.shelf import ModelShelf

SETTINGS = Settings(model_name="a", keep_alive=0.05)
ASKED = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
MESSAGES = [{"role": "user", "content": "hello"}]


class IdleModel:
    """Stands for an LLM that nobody gives anything to do."""

    def __init__(self) -> None:
        self.closed = False
        self.prefixes = None
        counters = SimpleNamespace(read=0, busy=0.0, wait=0.0, draft=0.0, verify=0.0)
        self.maker = SimpleNamespace(grammars=SimpleNamespace(tell=None))
        self.engine = SimpleNamespace(clock=SimpleNamespace(passes=1, rows=0, nodes=0))
        self.scheduler: Any = SimpleNamespace(
            running=(), waiting=(), wake=lambda: None, wait_for_work=lambda seconds: time.sleep(0.001), counters=lambda: counters
        )

    def close(self) -> None:
        self.closed = True


class CountedShelf:
    """Loads idle models, so many at once, and notes what is loaded in which order. `go`: loading waits for it."""

    def __init__(self, names: str, at_once: int = 1):
        self.contexts = dict.fromkeys(names, 64)
        self.exact = dict.fromkeys(names, True)
        self.at_once = at_once
        self.loads: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.missing: set[str] = set()

    def leaving(self, name: str, loaded: Mapping[str, Any]) -> list[str]:
        if name in self.missing:
            raise CheckpointError(f"{name} is gone.")
        return list(loaded)[: max(len(loaded) + 1 - self.at_once, 0)]

    def load(self, name: str, beside: Mapping[str, Any], ended: threading.Event) -> Any:
        assert len(beside) < self.at_once
        self.loads.append(name)
        while not self.go.wait(0.01):
            if ended.is_set():
                raise UnderstudyError("ended")
        return IdleModel()

    def close(self) -> None:
        """Nothing is held."""


def served(shelf: CountedShelf, turn: float = 30.0) -> ServedModels:
    return ServedModels(list(shelf.contexts), SETTINGS, shelf, turn)


async def used(models: ServedModels, name: str, seconds: float = 0.0) -> str:
    """Use a model for a while; it stays loaded, and it is the one that was asked for."""
    lease = await models.lease(name)
    llm = lease.served.llm
    await asyncio.sleep(seconds)
    assert not llm.closed and models.places[name].served is lease.served and lease.served.settings.model_name == name
    lease.release()
    return name


@settings(max_examples=6)
@given(
    wanted=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 3)), max_size=8),
    at_once=st.integers(1, 3),
    turn=st.sampled_from([0.0, 0.002, 30.0]),
)
def test_each_request_is_served_and_none_has_a_model_loaded_twice(
    wanted: list[tuple[str, int, int]], at_once: int, turn: float
) -> None:
    shelf = CountedShelf("abc", at_once)

    async def all_of_them() -> list[str]:
        models = served(shelf, turn)

        async def one(name: str, begins: int, lasts: int) -> str:
            await asyncio.sleep(begins / 1000)
            return await used(models, name, lasts / 1000)

        found = await asyncio.gather(*(one(*request) for request in wanted))
        await asyncio.to_thread(models.close)
        assert not models.loaded
        return found

    assert asyncio.run(all_of_them()) == [name for name, _, _ in wanted]
    # each load serves a request at least, and what was loaded is not loaded again
    assert len(shelf.loads) <= len(wanted) and set(shelf.loads) == {name for name, _, _ in wanted}
    if at_once == 3:
        assert len(shelf.loads) == len(set(shelf.loads))


def test_a_model_in_use_keeps_its_place_for_a_turn_and_no_longer() -> None:
    shelf = CountedShelf("ab")

    async def story() -> None:
        models = served(shelf, turn=0.3)
        first = await models.lease("a")
        other = asyncio.ensure_future(used(models, "b"))
        await asyncio.sleep(0)
        # within the turn those who come later go first, since they cost no loading
        (await models.lease("a")).release()
        assert not models.places["a"].closed
        while not models.places["a"].closed:
            await asyncio.sleep(0.01)
        # beyond it they wait behind those who came before
        late = asyncio.ensure_future(used(models, "a"))
        await asyncio.sleep(0.05)
        assert shelf.loads == ["a"] and not late.done() and not first.served.llm.closed
        first.release()
        assert await other == "b" and first.served.llm.closed
        assert await late == "a" and shelf.loads == ["a", "b", "a"]
        await asyncio.to_thread(models.close)

    asyncio.run(story())


def test_a_look_at_the_figures_while_a_model_is_unloaded_counts_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus takes a counter that went down for one that began anew, and adds what it had before."""
    monkeypatch.setattr(metrics, "gauges", lambda llm: {})
    figures = metrics.EngineFigures(["a"])
    figures.loaded("a", IdleModel())
    seen: list[float] = []

    def passes() -> float:
        families = {family.name: family for family in figures.collect()}
        return float(families["understudy:passes"].samples[0].value)

    def look(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code is not metrics.EngineFigures.unloaded.__code__:
            return None
        sys.settrace(None)
        seen.append(passes())
        sys.settrace(look)
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        figures.unloaded("a")
    finally:
        sys.settrace(before)
    assert seen and set(seen) == {passes()} == {1.0}


def test_a_model_that_nobody_waits_for_any_more_is_not_loaded() -> None:
    shelf = CountedShelf("ab")

    async def story() -> None:
        models = served(shelf, turn=0.0)
        first = await models.lease("a")
        other = asyncio.ensure_future(models.lease("b"))
        while not models.places["a"].closed:
            await asyncio.sleep(0.01)
        late = asyncio.ensure_future(used(models, "a"))
        await asyncio.sleep(0.01)
        other.cancel()
        assert await late == "a" and shelf.loads == ["a"] and not first.served.llm.closed
        first.release()
        await asyncio.to_thread(models.close)

    asyncio.run(story())


def test_what_cannot_be_had_is_told() -> None:
    shelf = CountedShelf("ab")

    async def story() -> None:
        models = ServedModels("ab", Settings(model_name="a", max_queue=1), shelf)
        with pytest.raises(ApiError, match="'c' is not here: 'a', 'b' are") as unknown:
            await models.lease("c")
        assert unknown.value.status == 404 and unknown.value.code == "model_not_found"
        (await models.lease(None)).release()
        shelf.missing.add("b")
        with pytest.raises(UnderstudyError, match="The model 'b' cannot be loaded: b is gone"):
            await models.lease("b")
        # what cannot be loaded takes nobody's place
        assert list(models.loaded) == ["a"]
        shelf.missing.clear()
        shelf.go.clear()
        waiting = asyncio.ensure_future(models.lease("b"))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="1 requests wait for b already"):
            await models.lease("b")
        await asyncio.to_thread(models.drain)
        with pytest.raises(Unavailable, match="shutting down"):
            await waiting
        with pytest.raises(Unavailable, match="shutting down"):
            await models.lease("a")
        await asyncio.to_thread(models.close)
        assert not models.loaded

    asyncio.run(story())


class SlowShelf(ModelShelf):
    """Holds loading up until `go`."""

    go = threading.Event()

    def load(self, name: str, beside: Mapping[str, LLM], ended: threading.Event) -> LLM:
        self.go.wait(60)
        return super().load(name, beside, ended)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Two models with the same tokenizer and other weights."""
    directory = tmp_path_factory.mktemp("several")
    for index, name in enumerate("ab"):
        torch.manual_seed(index)
        save(directory / name, ("llama-tied", "qwen2")[index], torch.bfloat16, max_position_embeddings=1024)
    return {name: str(directory / name) for name in "ab"}


@pytest.fixture(scope="module")
def alone(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each model says alone, without drafting."""
    found = {}
    for name, source in sources.items():
        with loaded(Path(source), tmp_path_factory, rows=1, method="none") as llm:
            (done,) = llm.generate(["hello"], SamplingParams(max_new_tokens=6, temperature=0))
            found[name] = done.text
    assert found["a"] != found["b"]
    return found


Several = tuple[Running, ServedModels, SlowShelf]


@contextmanager
def running(sources: Mapping[str, str | None], tight: bool = True) -> Iterator[Several]:
    """A server whose memory holds one of the models at a time, or all of them."""
    shelf = SlowShelf(sources, {"rows": 2, "context": 256}, lambda stage, done, total: None)
    shelf.go = threading.Event()
    shelf.check()
    if tight:
        shelf.options = {**shelf.options, "memory": max(plan.least_bytes for plan in shelf.plans.values()) + (1 << 20)}
        shelf.check()
    models = ServedModels(list(sources), SETTINGS, shelf)
    server = Running(create_app_of(models), SETTINGS)
    try:
        yield server, models, shelf
    finally:
        shelf.go.set()
        server.stop()


@pytest.fixture
def several(sources: dict[str, str | None]) -> Iterator[Several]:
    with running(sources) as found:
        yield found


def figures(server: Running) -> dict[str, float]:
    """The figures of /metrics by name and model."""
    text = server.http.get("/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if not line.startswith("#")}


def test_models_are_swapped_and_say_what_they_say_alone(several: Several, alone: dict[str, str]) -> None:
    server, models, shelf = several
    shelf.go.set()
    cards = {card["id"]: card for card in server.http.get("/v1/models").json()["data"]}
    assert list(cards) == ["a", "b"] and {card["max_model_len"] for card in cards.values()} == {256}
    assert all(card["exact"] is True for card in cards.values())
    assert {card["status"]["value"] for card in cards.values()} == {"unloaded"}
    gone = []
    for name in ("a", "b", "a"):
        done = server.post("/v1/completions", model=name, **ASKED).json()
        assert done["choices"][0]["text"] == alone[name] and done["model"] == name
        assert server.http.get(f"/v1/models/{name}").json()["status"] == {"value": "loaded"}
        gone.append(weakref.ref(models.loaded[name].llm.model))
    gc.collect()
    # memory is given back, whatever was asked of it
    assert list(models.loaded) == ["a"] and [model() is None for model in gone] == [True, True, False]
    unknown = server.post("/v1/completions", model="c", **ASKED)
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    assert server.post("/tokenize", model="b", prompt="hello").json()["count"] > 0 and list(models.loaded) == ["b"]
    assert server.http.get("/tokenizer_info").json()["vocab_size"] and list(models.loaded) == ["a"]
    # the page is shown what is loaded
    assert [server.http.get("/understudy", params=asked).json()["model"] for asked in ({}, {"model": "b"})] == ["a", "a"]
    told = figures(server)
    assert told['understudy:model_loads_total{model_name="a"}'] == 3 and told['understudy:model_loaded{model_name="b"}'] == 0
    assert told['understudy:generation_tokens_total{model_name="b"}'] == 6
    # what was counted before a model was unloaded stays
    assert told['understudy:passes_total{model_name="b"}'] > 0


def test_models_that_memory_holds_stay_loaded_beside_each_other(sources: dict[str, str | None], alone: dict[str, str]) -> None:
    with running(sources, tight=False) as (server, models, shelf), ThreadPoolExecutor(8) as pool:
        shelf.go.set()
        names = ["a", "b"] * 6
        done = list(pool.map(lambda name: server.post("/v1/completions", model=name, **ASKED).json(), names))
        assert [one["choices"][0]["text"] for one in done] == [alone[name] for name in names]
        assert set(models.loaded) == {"a", "b"}
        assert figures(server)['understudy:model_loads_total{model_name="a"}'] == 1
        plans = [served.llm.plan for served in models.loaded.values()]
        assert not any(plan.streamed_bytes for plan in plans)


def test_clients_of_all_apis_wait_for_their_model(several: Several, alone: dict[str, str]) -> None:
    server, models, shelf = several

    def raw(path: str, **body: Any) -> str:
        with httpx.stream("POST", server.url + path, json={"model": "a", "stream": True, **body}, timeout=60) as response:
            return "".join(response.iter_text())

    with ThreadPoolExecutor(8) as pool:
        text = pool.submit(raw, "/v1/completions", **ASKED)
        whole = pool.submit(server.post, "/v1/completions", model="a", **ASKED)
        chat = pool.submit(raw, "/v1/chat/completions", messages=MESSAGES, max_tokens=4)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        agent = pool.submit(lambda: [event.type for event in client.responses.create(
            model="a", input="hello", max_output_tokens=4, stream=True)])  # fmt: skip
        claude = pool.submit(raw, "/v1/messages", messages=MESSAGES, max_tokens=4)
        refused = pool.submit(raw, "/v1/completions", prompt="x" * 9000)
        # they have been told that the server is alive
        until(lambda: len(models.places["a"].waiting) == 6)
        threading.Event().wait(0.3)
        shelf.go.set()
        assert text.result().startswith(": alive\n\n: alive\n\n") and "[DONE]" in text.result()
        pieces = [json.loads(line[6:]) for line in text.result().splitlines() if line.startswith("data: {")]
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == alone["a"]
        assert whole.result().text.startswith("\n") and whole.result().json()["choices"][0]["text"] == alone["a"]
        assert chat.result().startswith(": alive") and '"role": "assistant"' in chat.result()
        kinds = agent.result()
        assert kinds[:2] == ["response.created", "response.in_progress"] and kinds.count("response.created") == 1
        assert kinds.count("response.in_progress") > 1 and kinds[-1] in ("response.completed", "response.incomplete")
        named = re.findall("^event: (.*)$", claude.result(), re.M)
        assert named[0] == "ping" and named.count("message_start") == 1 and named[-1] == "message_stop"
        # what is found out after the status was sent is told in the stream
        assert refused.result().startswith(": alive") and "context_length_exceeded" in refused.result()
    # a client has its answer a moment before its place is free
    until(lambda: models.places["a"].users == 0)
    with anthropic.Anthropic(base_url=server.url, api_key="none").messages.stream(
        model="b", max_tokens=4, messages=[{"role": "user", "content": "hello"}]
    ) as stream:
        assert stream.get_final_message().usage.output_tokens > 0


def test_a_client_that_leaves_while_its_model_is_loaded_gives_its_place_back(several: Several) -> None:
    server, models, shelf = several
    with httpx.stream("POST", f"{server.url}/v1/completions", json={"model": "b", "stream": True, **ASKED}, timeout=60) as response:
        assert next(response.iter_text()).startswith(": alive")
    until(lambda: not models.places["b"].waiting)
    shelf.go.set()
    assert server.post("/v1/completions", model="b", **ASKED).status_code == 200
    until(lambda: models.places["b"].users == 0)


def test_a_model_whose_files_were_removed_is_a_clear_error(
    sources: dict[str, str], alone: dict[str, str], tmp_path: Path
) -> None:
    copies = {name: str(shutil.copytree(source, tmp_path / name)) for name, source in sources.items()}
    with running(copies) as (server, models, shelf):
        shelf.go.set()
        assert server.post("/v1/completions", model="a", **ASKED).status_code == 200
        shutil.rmtree(copies["b"])
        shutil.rmtree(copies["a"])
        gone = server.post("/v1/completions", model="b", **ASKED)
        assert gone.json()["error"]["message"].startswith("The model 'b' cannot be loaded: ") and copies["b"] in gone.text
        # the other one goes on from what it holds
        assert server.post("/v1/completions", model="a", **ASKED).json()["choices"][0]["text"] == alone["a"]
        assert models.trouble == "" and server.http.get("/health").status_code == 200
