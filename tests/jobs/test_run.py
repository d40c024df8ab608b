"""A job answers with the model's own texts, keeps no more than its window, and stops where the machine is at fault."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.api.settings import AnswerSettings
from understudy.errors import TransferError
from understudy.jobs.answering import Answering
from understudy.jobs.ledger import Index, Output
from understudy.jobs.records import Line
from understudy.jobs.run import Job
from understudy.service import Unavailable

CHAT = [{"role": "user", "content": "The quick brown fox"}]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("jobs") / "tiny"
    save(path, "llama-tied", torch.bfloat16)
    with LLM(path, context=256, rows=3, resident="none") as model:
        yield model


class World:
    """One input, and a job over it as often as it is asked for."""

    def __init__(self, llm: LLM, folder: Path, bodies: list[Any]):
        self.llm = llm
        self.input = folder / "in.jsonl"
        self.path = folder / "out.jsonl"
        chats = ["messages" in body if isinstance(body, dict) else False for body in bodies]
        urls = ["/v1/chat/completions" if chat else "/v1/completions" for chat in chats]
        records = (
            {"custom_id": f"r{n}", "method": "POST", "url": url, "body": body}
            for n, (url, body) in enumerate(zip(urls, bodies, strict=True))
        )
        self.input.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        self.told = 0

    def run(self, window: int = 4, stop_at: int | None = None) -> Job:
        with self.input.open("rb") as file:
            output = Output(self.path, Index.of(file, lambda done, total: None), "tiny", overwrite=False)
            try:
                job = Job(AnswerSettings("tiny"), file, output, window, lambda: self.tell(stop_at))
                job.run(self.llm)
                return job
            finally:
                output.close()

    def tell(self, stop_at: int | None) -> None:
        self.told += 1
        if self.told == stop_at:
            signal.raise_signal(signal.SIGINT)

    def records(self) -> dict[str, Any]:
        found = [json.loads(text) for text in self.path.read_text().splitlines()]
        assert len({record["custom_id"] for record in found}) == len(found)
        return {record["custom_id"]: record for record in found}


def test_every_line_has_the_text_it_has_alone(llm: LLM, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": f"text {n}", "max_tokens": 3 + n % 8, "temperature": n % 2, "seed": n} for n in range(16)
    ]
    world = World(llm, tmp_path, [*bodies, {"messages": CHAT, "max_tokens": 9, "user": "me", "model": "tiny"}])
    before = llm.engine.clock.passes
    job = world.run()
    passes = llm.engine.clock.passes - before
    found = world.records()
    for n, body in enumerate(bodies):
        params = SamplingParams(max_new_tokens=body["max_tokens"], temperature=body["temperature"], seed=n)
        answer = found[f"r{n}"]["response"]["body"]
        assert answer["choices"][0]["text"] == llm.generate(body["prompt"], params)[0].text
        assert answer["understudy"]["bytes_streamed"] > 0
    message = found["r16"]["response"]["body"]["choices"][0]["message"]
    assert message["content"] == llm.chat(CHAT, SamplingParams(max_new_tokens=9)).text
    assert world.told == 17 and job.ignored == {"user"}
    assert job.tokens == sum(record["response"]["body"]["usage"]["completion_tokens"] for record in found.values())
    assert passes < job.tokens / 2, "requests did not run together"


def test_the_apis_of_agents_are_answered_too(llm: LLM, tmp_path: Path) -> None:
    world = World(llm, tmp_path, [{"prompt": "x", "max_tokens": 4}])
    lines = [
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 6, "user": "me"}),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 5}),
        ("/v1/messages", {"messages": CHAT}),
        ("/v1/responses", {"input": "Hi", "previous_response_id": "r"}),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 5, "stream": True}),
    ]
    records = ({"custom_id": f"a{n}", "method": "POST", "url": url, "body": body} for n, (url, body) in enumerate(lines))
    with world.input.open("a") as file:
        file.write("".join(f"{json.dumps(record)}\n" for record in records))
    job = world.run()
    found = world.records()
    first, second = (found[f"a{n}"]["response"]["body"] for n in range(2))
    text = llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_new_tokens=6)).text
    assert first["output"][0]["content"][0]["text"] == text and first["status"] == "incomplete"
    assert second["content"][0]["text"] == llm.chat(CHAT, SamplingParams(max_new_tokens=5)).text
    assert job.tokens == 4 + first["usage"]["output_tokens"] + second["usage"]["output_tokens"] and job.ignored == {"user"}
    errors = [found[f"a{n}"] for n in (2, 3, 4)]
    assert [record["error"]["param"] for record in errors] == ["max_tokens", "previous_response_id", "stream"]
    assert errors[0]["response"]["body"]["type"] == "error" and errors[0]["response"]["status_code"] == 400


def test_what_is_wrong_with_a_line_is_in_its_record(llm: LLM, tmp_path: Path) -> None:
    wrong: list[tuple[Any, int, str]] = [
        ({"prompt": "x", "max_tokens": "many"}, 400, "max_tokens"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature"),
        ({"prompt": [1] * 300}, 400, "shorten"),
        ({"prompt": "\ud800"}, 400, "is not valid Unicode"),
        ({"messages": []}, 400, "conversation"),
        ({"prompt": "x", "stream": True}, 400, "not for a batch"),
        ({"prompt": "x", "model": "gpt-4"}, 404, "only 'tiny' is"),
        ({"prompt": "x", "suffix": "y"}, 400, "suffix is not supported"),
        ({}, 400, "prompt"),
    ]
    world = World(llm, tmp_path, [body for body, _, _ in wrong] + [{"prompt": "x", "max_tokens": 2}])
    world.run()
    found = world.records()
    for n, (_, status, says) in enumerate(wrong):
        record = found[f"r{n}"]
        assert record["response"]["status_code"] == status and says in record["error"]["message"], record
        assert record["error"]["line"] == n + 1
        assert record["response"]["body"]["error"]["message"] == record["error"]["message"]
    assert found[f"r{len(wrong)}"]["error"] is None


@pytest.mark.parametrize("window", [1, 5])
def test_a_window_bounds_what_is_under_way(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    under_way, most, in_engine = [0], [0], [0]
    record, step = Answering.record, llm.engine.step

    async def recorded(self: Answering, line: Line) -> Any:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        try:
            return await record(self, line)
        finally:
            under_way[0] -= 1

    def counted(*arguments: Any) -> Any:
        in_engine[0] = max(in_engine[0], len(llm.scheduler.running) + len(llm.scheduler.waiting))
        return step(*arguments)

    monkeypatch.setattr(Answering, "record", recorded)
    monkeypatch.setattr(llm.engine, "step", counted)
    World(llm, tmp_path, [{"prompt": f"{n}", "max_tokens": 3} for n in range(15)]).run(window)
    # A busy machine may answer one line before the engine sees the next, so the engine's own count only has a bound.
    assert most[0] == window and 1 <= in_engine[0] <= window


def test_an_interrupt_keeps_what_is_done(llm: LLM, tmp_path: Path) -> None:
    world = World(llm, tmp_path, [{"prompt": f"{n}", "max_tokens": 4} for n in range(20)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            world.run(stop_at=6)
    finally:
        signal.signal(signal.SIGINT, before)
    assert 6 <= len(world.records()) == world.told < 20 and llm.scheduler.idle
    world.run()
    assert len(world.records()) == world.told == 20


def test_an_error_of_the_machine_ends_the_run_and_no_line(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = llm.engine.verify
    passes = [0]

    def failing(*arguments: Any) -> Any:
        passes[0] += 1
        if passes[0] == 12:
            raise TransferError("Reading residual.bin at 4096 gave 12 of 8192 bytes.")
        return verify(*arguments)

    monkeypatch.setattr(llm.engine, "verify", failing)
    world = World(llm, tmp_path, [{"prompt": f"{n}", "max_tokens": 4} for n in range(20)])
    with pytest.raises(TransferError, match="12 of 8192"):
        world.run()
    assert 0 < world.told < 20 and not any(record["error"] for record in world.records().values())
    world.run()
    assert len(world.records()) == world.told == 20


def test_a_bug_is_told_in_the_record_of_its_line(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = llm.engine.verify
    faults = [RuntimeError("a bug")]

    def failing(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return verify(*arguments)

    monkeypatch.setattr(llm.engine, "verify", failing)
    world = World(llm, tmp_path, [{"prompt": f"{n}", "max_tokens": 4} for n in range(6)])
    world.run(window=1)
    found = world.records()
    assert found["r0"]["error"]["code"] == "server_error" and found["r0"]["response"]["status_code"] == 500
    assert not any(record["error"] for name, record in found.items() if name != "r0")


def test_a_model_that_is_lost_ends_the_run(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.errors import UnderstudyError

    world = World(llm, tmp_path, [{"prompt": f"{n}", "max_tokens": 4} for n in range(6)])
    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "_lost", UnderstudyError("cuda stopped working: load the model again."))
        with pytest.raises((UnderstudyError, Unavailable), match="stopped working"):
            world.run()
    assert world.told == 0
    world.run()
    assert world.told == 6
