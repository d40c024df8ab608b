"""A bug at any stage of one request, and bodies that nobody would send: the others finish, and /health tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.conftest import Running, Start, until
from understudy import LLM, SamplingParams
from understudy.api.answers import ApiAnswer
from understudy.batch import Batch
from understudy.text import TextStream

BAD = 3
# Its first token is BAD, which no other prompt has.
BROKEN = [BAD, 9, 10, 11]


def mine(tokens: Any) -> bool:
    return list(tokens[:4]) == BROKEN


def raising(function: Callable[..., Any], concerns: Callable[..., bool]) -> Callable[..., Any]:
    """`function`, which raises for the arguments that it `concerns`."""

    def broken(*arguments: Any, **options: Any) -> Any:
        if concerns(*arguments, **options):
            raise RuntimeError("kaput")
        return function(*arguments, **options)

    return broken


def broken_stage(stage: str, llm: LLM) -> tuple[Any, str, Callable[..., bool]]:
    """What to break for `stage`: an object, the name of its method, and which of its calls fail."""
    engine = llm.engine
    rows: set[int] = set()

    def admits(sequence: Any, *_: Any) -> bool:
        return mine(sequence.tokens)

    def holds(sequences: Any) -> bool:
        return any(mine(sequence.tokens) for sequence in sequences)

    def verifies(nodes: Any, *_: Any) -> bool:
        rows.update(sequence.row for sequence in engine.sequences if mine(sequence.tokens))
        found = bool(rows & set(nodes.rows.tolist()))
        rows.clear()
        return found

    def samples(batch: Batch, *_: Any) -> bool:
        return any(mine(member.sequence.tokens) for member in batch.members)

    def detokenises(text: TextStream, *_: Any, **__: Any) -> bool:
        return any(mine(sequence.tokens) and sequence.stops.__self__ is text for sequence in engine.sequences)  # type: ignore[attr-defined]

    return {
        "tokenising": (llm, "prompt_ids", lambda prompt: mine(prompt)),
        "admission": (engine, "admit", admits),
        "draft": (engine.drafter, "draft", holds),
        "verify": (engine, "verify", verifies),
        "sampling": (Batch, "choose", samples),
        "detokenising": (TextStream, "feed", detokenises),
        "writing": (ApiAnswer, "_figures", lambda answer, *_: mine(answer.requests[0].sequence.tokens)),
    }[stage]


@pytest.mark.parametrize("stage", ["tokenising", "admission", "draft", "verify", "sampling", "detokenising", "writing"])
def test_a_bug_in_one_request_leaves_the_others_alone(
    server: Running, llm: LLM, plain: LLM, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    owner, name, concerns = broken_stage(stage, llm)
    monkeypatch.setattr(owner, name, raising(getattr(owner, name), concerns))
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)

    def ask(prompt: Any, stream: bool) -> tuple[int, str]:
        body = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        try:
            response = server.post("/v1/completions", **body)
        except httpx.RemoteProtocolError as error:
            # The status was sent: all that is left is to break the stream off.
            return 0, str(error)
        return response.status_code, response.text

    prompts = ["one", "two two", "The quick brown fox"]
    with ThreadPoolExecutor(5) as pool:
        good = [pool.submit(ask, prompt, False) for prompt in prompts]
        bad = [pool.submit(ask, BROKEN, stream) for stream in (False, True)]
    for prompt, future in zip(prompts, good, strict=True):
        status, text = future.result()
        assert status == 200 and json.loads(text)["choices"][0]["text"] == plain.generate(prompt, params)[0].text
    (status, text), (_, streamed) = (future.result() for future in bad)
    assert status == 500 and "kaput" not in text and "[DONE]" not in streamed
    # it is told whether the server goes on: it does, with room for the next
    assert server.http.get("/health").json() == {"status": "ok"}
    until(lambda: llm.scheduler.idle)
    monkeypatch.undo()
    assert ask(BROKEN, False)[0] == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_is_told_and_nobody_waits_for_it(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()

    def ends() -> None:
        raise SystemExit

    monkeypatch.setattr(llm.scheduler, "step", ends)
    refused = server.post("/v1/completions", prompt="x", max_tokens=2)
    assert refused.status_code == 503
    health = server.http.get("/health")
    assert health.status_code == 503 and "thread" in health.json()["status"]
    assert server.post("/v1/completions", prompt="x").status_code == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", rb'{"prompt": "a \ud800 b", "max_tokens": 1}'),
        ("/v1/completions", rb'{"prompt": "a", "max_tokens": 1, "stop": "\udfff"}'),
        ("/v1/chat/completions", rb'{"messages": [{"role": "user", "content": "\ud800"}]}'),
        ("/v1/chat/completions", rb'{"messages": [{"role": "\ud800", "content": "x"}]}'),
        ("/v1/chat/completions", rb'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}'),
        ("/tokenize", rb'{"prompt": "\ud800"}'),
        ("/v1/completions", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("/v1/completions", b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}"),
        ("/v1/completions", b'{"prompt": "x", "temperature": NaN}'),
        ("/v1/completions", b'{"prompt": "x", "temperature": 1e999}'),
        ("/v1/completions", b'{"prompt": "x", "stop_token_ids": [99999999999999999999999]}'),
        ("/v1/completions", b"\xff\xfe"),
        ("/v1/completions", b""),
        ("/detokenize", b'{"tokens": [-1]}'),
        ("/detokenize", b'{"tokens": [99999999999999999999999]}'),
    ],
)
def test_bodies_that_nobody_would_send_are_refused(server: Running, path: str, body: bytes) -> None:
    response = server.http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400) and (response.status_code == 400) >= (b"ud800" in body), response.text
    if response.status_code == 400:
        assert "\n" not in response.json()["error"]["message"]
    assert server.http.get("/health").status_code == 200


def test_fields_with_any_name_are_told_in_the_header(server: Running) -> None:
    odd = {"\u4f60": 1, "a\r\nSet-Cookie: b": 2, "x" * 900: 3}
    response = server.post("/v1/completions", prompt="x", max_tokens=1, **odd)
    assert response.status_code == 200 and "set-cookie" not in response.headers
    assert "%E4%BD%A0" in response.headers["x-understudy-ignored"] and len(response.headers["x-understudy-ignored"]) < 200
