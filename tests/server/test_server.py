"""The server as clients use it: texts are those of the model alone, streams have the form that clients read, nothing hangs.

What other servers got wrong in continuous batches with drafts, and where it is tested here:

| fault | tests |
|---|---|
| a limit before a stop inside a run; tokens after a stop counted | test_engine.py: what_a_stop_token_cuts_off_was_not_accepted |
| the first listed stop wins, not the first completed | test_text.py: stop_texts_are_found_in_whatever_pieces_they_come |
| text, ids and figures end at different tokens | below: stops_are_texts_and_token_ids |
| log-probabilities or penalties left out once tokens are drafted | test_fields.py |
| one stream of seeds for all requests | below: several_prompts_and_several_answers_have_choices_in_order |
| a cancel on a shared beginning, a hit that writes wrong slots, hits switched off by drafts | test_reuse.py; test_soak.py |
| one bad request ends the thread, and health says ok | test_faults.py; test_scheduler.py |
| a client that left runs on | test_waiting.py |
| long prompts starve the others | test_engine.py: everybody_advances_in_every_pass_while_a_long_prompt_is_read |
| scratch is never given back | test_soak.py |
"""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.conftest import Running, Start, slowed, until
from understudy import LLM, SamplingParams

PROMPT = "The quick brown fox"
CHAT = [{"role": "user", "content": PROMPT}]


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a stream, which ends with [DONE]."""
    lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_completion_is_the_text_of_the_model_alone(server: Running, plain: LLM) -> None:
    (alone,) = plain.generate(PROMPT, SamplingParams(max_new_tokens=40))
    found = server.post("/v1/completions", prompt=PROMPT, max_tokens=40, return_token_ids=True).json()
    choice = found["choices"][0]
    assert choice["text"] == alone.text and choice["token_ids"] == alone.token_ids
    assert choice["finish_reason"] == alone.finish_reason
    assert found["usage"]["completion_tokens"] == len(alone.token_ids)
    # drafts were made and accepted, and weights were streamed
    assert found["understudy"]["accepted"] > 0 and found["understudy"]["bytes_streamed"] > 0


def test_the_openai_client_reads_whole_answers_and_streams(server: Running, plain: LLM) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    expected = plain.chat(CHAT, SamplingParams(max_new_tokens=30, temperature=0.8, seed=5)).text
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_completion_tokens": 30, "temperature": 0.8, "seed": 5}
    assert client.chat.completions.create(**asked).choices[0].message.content == expected
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 30
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_stream_has_the_form_that_clients_read(server: Running) -> None:
    body = {"messages": CHAT, "max_tokens": 12, "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = events(response)
    first, *pieces, last, figures = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *pieces))
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert figures["choices"] == [] and figures["usage"]["completion_tokens"] == 12
    assert figures["timings"]["predicted_n"] == 12
    assert len({chunk["id"] for chunk in chunks}) == 1
    unasked = {**body, "stream_options": None}
    with server.http.stream("POST", "/v1/chat/completions", json=unasked) as response:
        assert all(chunk["choices"] and "usage" not in chunk for chunk in events(response))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.tuples(st.text("abc def\n", min_size=1, max_size=30), st.integers(1, 30), st.sampled_from([0.0, 0.9]), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_texts_do_not_depend_on_who_else_asks(server: Running, plain: LLM, asked: list[tuple[str, int, float, bool]]) -> None:
    def ask(one: tuple[str, int, float, bool]) -> str:
        prompt, count, temperature, streams = one
        body = {"prompt": prompt, "max_tokens": count, "temperature": temperature, "seed": 3, "stream": streams}
        if not streams:
            return str(server.post("/v1/completions", **body).json()["choices"][0]["text"])
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            return "".join(chunk["choices"][0]["text"] for chunk in events(response))

    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(ask, asked))
    for text, (prompt, count, temperature, _) in zip(found, asked, strict=True):
        params = SamplingParams(max_new_tokens=count, temperature=temperature, seed=3)
        assert text == plain.generate(prompt, params)[0].text


def test_several_prompts_and_several_answers_have_choices_in_order(server: Running, plain: LLM) -> None:
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 9, "temperature": 4.0, "seed": 11, "echo": True}
    choices = server.post("/v1/completions", **body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["text"][:3] for choice in choices] == ["one", "one", "two", "two"]
    first = plain.generate("one", SamplingParams(max_new_tokens=9, temperature=4.0, seed=11))[0].text
    assert choices[0]["text"] == "one" + first and choices[1]["text"] != choices[0]["text"]
    unseeded = server.post("/v1/completions", prompt="x", n=4, max_tokens=12, temperature=4.0).json()["choices"]
    assert len({choice["text"] for choice in unseeded}) == 4


def test_stops_are_texts_and_token_ids(server: Running, plain: LLM) -> None:
    (whole,) = plain.generate(PROMPT, SamplingParams(max_new_tokens=30))
    stop = whole.text[10:12]
    found = server.post("/v1/completions", prompt=PROMPT, max_tokens=30, stop=stop).json()["choices"][0]
    assert found["text"] == whole.text[: whole.text.index(stop)] and found["finish_reason"] == "stop"
    token = whole.token_ids[7]
    found = server.post(
        "/v1/completions", prompt=PROMPT, max_tokens=30, stop_token_ids=[token], return_token_ids=True
    ).json()["choices"][0]
    assert found["token_ids"] == whole.token_ids[: whole.token_ids.index(token) + 1] and found["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/chat/completions", {}, 400, "messages"),
        ("/v1/chat/completions", {"messages": []}, 400, "conversation"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text only"),
        ("/v1/chat/completions", {"messages": CHAT, "temperature": -1}, 400, "temperature"),
        ("/v1/chat/completions", {"messages": CHAT, "max_tokens": "many"}, 400, "max_tokens"),
        ("/v1/chat/completions", {"messages": CHAT, "n": 0}, 400, "n must be from 1"),
        ("/v1/chat/completions", {"messages": CHAT, "tools": [{"type": "function"}]}, 400, "tools.0.function"),
        ("/v1/completions", {"prompt": "x", "prompt_logprobs": 1}, 400, "prompt_logprobs is not supported"),
        ("/v1/completions", {"prompt": "x", "repeat_penalty": 1.1}, 400, "use repetition_penalty instead"),
        ("/v1/completions", {"prompt": "x", "mirostat": 2}, 400, "mirostat is not supported"),
        ("/v1/chat/completions", {"messages": CHAT, "model": "gpt-4"}, 404, "'gpt-4' is not here"),
        ("/v1/completions", {"prompt": ""}, 400, "empty"),
        ("/v1/completions", {"prompt": []}, 400, "empty"),
        ("/v1/completions", {"prompt": [70000]}, 400, "not in this model's vocabulary"),
        ("/v1/completions", {"prompt": [1] * 600}, 400, "shorten"),
        ("/tokenize", {}, 400, "either prompt or messages"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_are_told_in_one_line(server: Running, path: str, body: dict[str, Any], status: int, says: str) -> None:
    response = server.post(path, **body)
    error = response.json()["error"]
    assert response.status_code == status and says in error["message"] and "\n" not in error["message"]
    assert {"type", "param", "code"} < set(error)


def test_harmless_fields_are_ignored_and_named(server: Running) -> None:
    neutral = {"presence_penalty": 0, "logit_bias": {}, "tools": [], "response_format": {"type": "text"}}
    neutral |= {"typical_p": 1.0, "mirostat": 0}
    response = server.post("/v1/completions", prompt="x", max_tokens=1, user="me", store=False, **neutral)
    assert response.status_code == 200 and response.headers["x-understudy-ignored"] == "store, user"


def test_a_prompt_that_is_too_long_has_a_code_for_programs(server: Running) -> None:
    error = server.post("/v1/completions", prompt=[1] * 600).json()["error"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"


def test_a_turn_that_will_not_fit_is_refused_with_the_fields_name_and_the_next_one_is_served(server: Running, llm: LLM) -> None:
    talk = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "x" * 80}] * 3
    body = {"messages": [*talk, {"role": "user", "content": "and " * 40}], "max_tokens": 30}
    response = server.post("/v1/chat/completions", **body, stream=True)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "messages" and error["code"] == "context_length_exceeded"
    assert "reply needs 16 at least" in error["message"] and f"room for {llm.context} in all" in error["message"]
    body["messages"] = [*talk[:2], {"role": "user", "content": "and"}]
    assert server.post("/v1/chat/completions", **body).status_code == 200


def test_a_turn_that_memory_does_not_hold_is_refused_by_name(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.model.cache, "_reached", [0] * llm.plan.rows)
    monkeypatch.setattr("understudy.room.spare_bytes", lambda: 64)
    error = server.post("/v1/chat/completions", messages=CHAT, max_tokens=5).json()["error"]
    assert error["param"] == "messages" and error["code"] == "out_of_memory" and "(max_tokens)" in error["message"]


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_gives_its_place_back(
    server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    go = slowed(llm, monkeypatch)
    body = json.dumps({"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": streams})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    # three run, two wait
    sockets = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    for client in sockets:
        client.sendall(f"{head}\r\n\r\n{body}".encode())
    until(lambda: len(llm.scheduler.waiting) + len(llm.scheduler.running) == 5)
    for client in sockets:
        client.close()
    until(lambda: not llm.scheduler.waiting)
    go.set()
    until(lambda: llm.scheduler.idle)
    passes = llm.engine.clock.passes
    assert server.post("/v1/completions", prompt="x", max_tokens=1).status_code == 200
    assert llm.engine.clock.passes == passes + 1


def test_a_stream_says_that_it_is_alive_while_nothing_comes(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(keep_alive=0.05)
    go = slowed(llm, monkeypatch)
    lines: list[str] = []
    with server.http.stream("POST", "/v1/completions", json={"prompt": "x", "max_tokens": 3, "stream": True}) as response:
        for line in response.iter_lines():
            lines.append(line)
            if lines.count(": alive") == 4:
                go.set()
    assert lines.count(": alive") >= 4 and "data: [DONE]" in lines


def test_a_full_queue_turns_others_away(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(max_queue=1)
    go = slowed(llm, monkeypatch)
    body = {"prompt": "x", "max_tokens": 2}
    with ThreadPoolExecutor(4) as pool:
        served = [pool.submit(server.post, "/v1/completions", **body) for _ in range(4)]
        until(lambda: len(llm.scheduler.waiting) + len(llm.scheduler.running) == 4)
        refused = server.post("/v1/completions", **body)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        go.set()
        assert all(response.result().status_code == 200 for response in served)
    assert 'admission_rejections_total{model_name="tiny",reason="queue_full"} 1.0' in server.http.get("/metrics").text


def test_a_request_that_takes_too_long_is_ended(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(request_timeout=0.2)
    go = slowed(llm, monkeypatch)
    response = server.post("/v1/completions", prompt="x", max_tokens=2)
    assert response.status_code == 408 and "0.2 s" in response.json()["error"]["message"]
    go.set()
    until(lambda: llm.scheduler.idle)


def test_a_pass_that_fails_ends_its_requests_and_no_others(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = llm.engine.verify
    failures = [RuntimeError("kaput")]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return verify(*arguments)

    monkeypatch.setattr(llm.engine, "verify", failing)
    failed = server.post("/v1/completions", prompt="x", max_tokens=2)
    assert failed.status_code == 500 and "kaput" not in failed.text and failed.headers["x-should-retry"] == "false"
    assert server.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200
    assert server.http.get("/health").status_code == 200


def test_a_lost_device_ends_everything_and_is_told(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from understudy.errors import UnderstudyError

    server = start()
    monkeypatch.setattr(llm.model, "_lost", UnderstudyError("cuda stopped working: load the model again."))
    with server.http.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as response:
        assert "stopped working" in "".join(response.iter_lines())
    until(lambda: server.http.get("/health").status_code == 503)
    health = server.http.get("/health")
    assert health.status_code == 503 and "stopped working" in health.json()["status"]
    refused = server.post("/v1/completions", prompt="x")
    assert refused.status_code == 503 and refused.headers["x-should-retry"] == "false"


def test_tokens_there_and_back(server: Running) -> None:
    found = server.post("/tokenize", prompt="hello").json()
    assert found["count"] == len(found["tokens"]) > 0 and found["max_model_len"] == 512
    assert server.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": "hello"}
    chat = server.post("/tokenize", messages=CHAT).json()
    assert chat["count"] > len(PROMPT)
    assert "eos_token" in server.http.get("/tokenizer_info").json()
    assert server.http.get("/version").json()["version"]


def test_metrics_count_what_was_done(server: Running) -> None:
    server.post("/v1/completions", prompt="count me", max_tokens=20, ignore_eos=True)
    text = server.http.get("/metrics").text
    assert 'understudy:generation_tokens_total{model_name="tiny"} 20.0' in text
    assert 'understudy:request_success_total{finished_reason="length",model_name="tiny"} 1.0' in text
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("understudy:")}
    assert values["understudy:spec_decode_num_accepted_tokens_total"] > 0 and values["understudy:link_bytes_total"] > 0
    assert values["understudy:num_requests_running"] == 0 and values["understudy:ring_bytes"] > 0
    passes = values["understudy:passes_total"]
    assert values["understudy:pass_nodes_total"] > values["understudy:pass_rows_total"] >= passes > 0
    parts = [values[f"understudy:request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode")]
    assert min(parts) > 0 and sum(parts) == pytest.approx(values["understudy:e2e_request_latency_seconds_sum"])


def test_a_server_that_shuts_down_finishes_what_it_has(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    go = slowed(llm, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(server.post, "/v1/completions", prompt="x", max_tokens=2)
        until(lambda: not llm.scheduler.idle)
        server.service.drain()
        assert server.http.get("/health").status_code == 503
        assert server.post("/v1/completions", prompt="x").status_code == 503
        go.set()
        assert last.result().status_code == 200
