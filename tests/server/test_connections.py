"""Clients that send no more: who waits for its answer gets it, and who has left gives its place back."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import closing

import pytest
from starlette.types import Message

from tests.server.conftest import Running, Start, slowed, until
from understudy import LLM
from understudy.server.responses import EventStream

GET = "GET /version HTTP/{}\r\nHost: localhost\r\n\r\n"


def half_closed(port: int, *pieces: str) -> socket.socket:
    """A client that has sent these texts, one after the other, and closed its direction of the connection."""
    client = socket.create_connection(("127.0.0.1", port))
    client.settimeout(20)
    for piece in pieces:
        client.sendall(piece.encode())
    client.shutdown(socket.SHUT_WR)
    return client


def rest(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    with closing(client):
        while piece := client.recv(4096):
            found += piece
    return found


def asking(path: str = "/v1/completions", version: str = "1.1", **body: object) -> str:
    content = json.dumps({"prompt": "x", "max_tokens": 3, "ignore_eos": True, **body})
    return (
        f"POST {path} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n{content}"
    )


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_short_answers_come_all_the_same(server: Running, version: str) -> None:
    found = rest(half_closed(server.port, GET.format(version)))
    assert found.startswith(b"HTTP/1.1 200 ") and b'"version"' in found
    found = rest(half_closed(server.port, asking(version=version)))
    assert found.startswith(b"HTTP/1.1 200 ") and b'"completion_tokens":3' in found
    found = rest(half_closed(server.port, asking(version=version, n=99)))
    assert found.startswith(b"HTTP/1.1 400 ") and b"n must be from 1 to" in found


def test_each_of_several_requests_in_a_row_is_answered(server: Running) -> None:
    texts = [GET.format("1.1"), asking(), GET.format("1.1")]
    for pieces in ("".join(texts),), texts:
        found = rest(half_closed(server.port, *pieces))
        assert found.count(b"HTTP/1.1 200 ") == 3 and found.count(b'"version"') == 2 and b'"completion_tokens":3' in found


@pytest.mark.parametrize("streams", [True, False])
def test_a_long_answer_comes_whole_after_a_sign_of_life(
    start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    # No other sign of life comes in this time.
    server = start(keep_alive=60)
    go = slowed(llm, monkeypatch)
    client = half_closed(server.port, asking(stream=streams))
    sign = b": alive\n\n\r\n" if streams else b"\r\n1\r\n\n\r\n"
    found = b""
    # The first stands for the beginning of a text.
    while found.count(sign) < 1 + streams:
        found += client.recv(4096)
    assert not go.is_set() and len(llm.scheduler.running) + len(llm.scheduler.waiting) == 1
    go.set()
    found += rest(client)
    assert found.count(sign) == 1 + streams
    assert b"data: [DONE]" in found if streams else b'"completion_tokens":3' in found
    until(lambda: llm.scheduler.idle)


@pytest.mark.parametrize("request_text", [GET.format("1.1")[:-2], asking()[:-1], asking() + asking()[:-1]])
def test_a_request_that_will_never_be_whole_ends_the_connection(server: Running, request_text: str) -> None:
    found = rest(half_closed(server.port, request_text))
    assert found.count(b"HTTP/1.1 ") == request_text.count(asking())


def test_a_client_that_waited_and_then_left_gives_its_place_back(
    start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(keep_alive=0.1)
    go = slowed(llm, monkeypatch)
    client = half_closed(server.port, asking(max_tokens=200))
    assert b"200 OK" in client.recv(4096)
    client.close()
    until(lambda: all(request.cancelled for request in (*llm.scheduler.waiting, *llm.scheduler.running)), 5)
    go.set()
    until(lambda: llm.scheduler.idle)


def test_much_at_once_is_not_written_to_a_client_that_has_left() -> None:
    """asyncio tells that a client has left in its next turn only, and logs what is written until then."""
    sent: list[Message] = []

    async def events() -> AsyncGenerator[str]:
        for number in range(1000):
            yield f"data: {number}\n\n"

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    asyncio.run(EventStream(events(), {}, lambda: None)({"type": "http"}, receive, send))
    assert len(sent) < 10
