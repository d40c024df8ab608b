"""While an answer is long in coming: signs of life, clients that leave in each phase, and clients that try again."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx
import pytest

from tests.server.conftest import Running, Start, slowed, until
from understudy import LLM, SamplingParams

ASKED = {"prompt": "x", "max_tokens": 3, "ignore_eos": True}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_whole_answer_that_is_long_in_coming_shows_life(
    start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    server = start(keep_alive=0.05)
    go = slowed(llm, monkeypatch)
    body = {**ASKED, "messages": [{"role": "user", "content": "x"}]}
    pieces: list[bytes] = []
    with server.http.stream("POST", path, json=body) as response:
        for piece in response.iter_raw():
            pieces.append(piece)
            if len(pieces) == 4:
                go.set()
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    assert pieces[:4] == [b"\n"] * 4
    assert json.loads(b"".join(pieces))["usage"]["completion_tokens"] == 3


def test_an_error_after_a_sign_of_life_is_told_in_the_object(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(keep_alive=0.05, request_timeout=0.3)
    go = slowed(llm, monkeypatch)
    response = server.post("/v1/completions", **ASKED)
    go.set()
    assert response.status_code == 200 and response.json()["error"]["type"] == "timeout_error"
    assert response.text.startswith("\n")
    until(lambda: llm.scheduler.idle)


def test_a_stream_begins_when_it_is_taken_and_lives_in_the_queue(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(keep_alive=0.05)
    go = slowed(llm, monkeypatch)
    ended: list[int] = []

    def fill() -> None:
        ended.append(server.post("/v1/completions", **ASKED).status_code)

    others = [threading.Thread(target=fill) for _ in range(3)]
    for other in others:
        other.start()
    until(lambda: len(llm.scheduler.running) == 3 or len(llm.scheduler.waiting) >= 2)
    lines: list[str] = []
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in filter(None, response.iter_lines()):
            lines.append(line)
            if line == ": alive" and lines.count(line) == 3:
                # it waits still, behind passes that do not end
                assert not go.is_set()
                go.set()
    for other in others:
        other.join(60)
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert lines[1:4] == [": alive"] * 3 and lines[-1] == "data: [DONE]" and ended == [200] * 3


def sent(server: Running, **body: Any) -> socket.socket:
    """A client that has sent its request."""
    content = json.dumps({**ASKED, **body})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(f"{head}\r\n\r\n{content}".encode())
    return client


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_client_that_leaves_costs_at_most_the_pass_under_way(
    start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch, phase: str, streams: bool
) -> None:
    """A place is free after the pass during which its client left, while a prompt is read and while text comes.

    It is noticed long before the next sign of life would be due."""
    server = start(keep_alive=120)
    entered, go = threading.Semaphore(0), threading.Semaphore(0)
    step = llm.engine.step
    served: list[int] = []

    def stepwise(sequences: Any) -> Any:
        served.append(len(sequences))
        entered.release()
        assert go.acquire(timeout=20)
        return step(sequences)

    monkeypatch.setattr(llm.engine, "step", stepwise)
    client = sent(server, prompt="word " * 60, max_tokens=300, stream=streams)
    for _ in range(0 if phase == "prefill" else 3):
        assert entered.acquire(timeout=20)
        go.release()
    assert entered.acquire(timeout=20)
    passes = len(served)
    client.close()
    until(lambda: any(request.cancelled for request in llm.scheduler.running))
    go.release()
    until(lambda: llm.scheduler.idle)
    assert len(served) == passes


def test_a_client_that_tries_again_does_not_run_beside_its_ghost(
    start: Start, llm: LLM, plain: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients give up and send the same again; with a queue of one place, what they left behind must not stand in their way."""
    server = start(max_queue=1)
    go = slowed(llm, monkeypatch)
    seen: list[int] = []
    step = llm.engine.step

    def counting(sequences: Any) -> Any:
        seen.append(len(sequences))
        return step(sequences)

    monkeypatch.setattr(llm.engine, "step", counting)
    for _ in range(6):
        client = sent(server, max_tokens=20)
        until(lambda: any(not r.cancelled for r in (*llm.scheduler.waiting, *llm.scheduler.running)))
        client.close()
        until(lambda: all(r.cancelled for r in (*llm.scheduler.waiting, *llm.scheduler.running)))
    found: list[httpx.Response] = []
    last = threading.Thread(target=lambda: found.append(server.post("/v1/completions", **{**ASKED, "max_tokens": 20})))
    last.start()
    until(lambda: any(not r.cancelled for r in (*llm.scheduler.waiting, *llm.scheduler.running)))
    go.set()
    last.join(60)
    (alone,) = plain.generate("x", SamplingParams(max_new_tokens=20, ignore_eos=True))
    assert found[0].json()["choices"][0]["text"] == alone.text
    # the pass under way served the first ghost; all later ones serve one request
    assert set(seen) == {1} and llm.scheduler.idle
