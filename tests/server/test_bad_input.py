"""Bad input of agents, in each of the three APIs: a line with the field's name, and whoever else asks is served as before."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from tests.server.conftest import Running, Start, scripted, until
from tests.server.test_tools import ADD, CALL, TEMPLATE, WEATHER
from understudy import LLM

APIS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
# As Mistral's does: turns alternate.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
CYCLE = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
SCHEMAS = {
    "impossible": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "cyclic": CYCLE,
    "huge": {"enum": ["x" * 300_000]},
    "deep": json.loads('{"items":' * 150 + "true" + "}" * 150),
}


def asked(path: str, messages: list[dict[str, Any]], most: int = 9, **more: Any) -> dict[str, Any]:
    """The body of a conversation in the API of `path`."""
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    return {("input" if path == "/v1/responses" else "messages"): messages, limit: most, **more}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def tools_of(path: str, tool: dict[str, Any], **parameters: Any) -> list[dict[str, Any]]:
    """`tool` as the API of `path` has it, with other `parameters` where they are given."""
    own = {"description": "", **tool["function"], **parameters}
    if path == "/v1/messages":
        return [{"name": own["name"], "input_schema": own["parameters"]}]
    return [{"type": "function", **own} if path == "/v1/responses" else {"type": "function", "function": own}]


def form(path: str, schema: Any) -> dict[str, Any]:
    """The field that holds an answer to `schema`, and its name."""
    whole = {"type": "json_schema", "name": "x", "schema": schema}
    if path == "/v1/chat/completions":
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    return {"text": {"format": whole}} if path == "/v1/responses" else {"output_config": {"format": whole}}


def refused(response: httpx.Response, says: str, status: int = 400) -> dict[str, Any]:
    """The error of a response, which is one line that has `says` in it."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert says in error["message"] and "\n" not in error["message"] and len(error["message"]) < 400, error
    return error


NAMED = {"/v1/chat/completions": "response_format", "/v1/responses": "text.format", "/v1/messages": "output_config.format"}


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_that_cannot_be_used(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch, path: str, name: str) -> None:
    # One that tells no tools: what they take has room in any context.
    monkeypatch.setattr(llm.tokenizer, "chat_template", "{{ messages[-1].content }}")
    for streams in (False, True):
        found = refused(server.post(path, **asked(path, user("x")), **form(path, SCHEMAS[name]), stream=streams), NAMED[path])
        assert found["param"] == NAMED[path]
    tools = tools_of(path, ADD, parameters=SCHEMAS[name])
    must: Any = {"type": "any"} if path == "/v1/messages" else "required"
    for choice in ({"tool_choice": must}, {}):
        error = refused(server.post(path, **asked(path, user("x")), tools=tools, **choice), "tools: the schema of 'add' ")
        assert error["param"] == "tools" and error["code"] == "invalid_function_parameters"


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("streams", [False, True])
def test_a_call_that_the_length_cuts_off_is_never_half_told(
    server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch, path: str, streams: bool
) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", TEMPLATE)
    scripted(llm, monkeypatch, [*(CALL[start : start + 5] for start in range(0, len(CALL), 5))])
    found = server.post(path, **asked(path, user("x"), 10), tools=tools_of(path, WEATHER), stream=streams)
    assert found.status_code == 200
    assert "get_weather" in found.text and "input_json_delta" not in found.text
    assert ENDED[path] in found.text.replace('":"', '": "')
    assert not any(kind in found.text for kind in ('"tool_calls": [', '"function_call"', '"tool_use"')), found.text


# How each API says that the length ended an answer.
ENDED = {
    "/v1/chat/completions": '"finish_reason": "length"',
    "/v1/responses": '"max_output_tokens"',
    "/v1/messages": '"stop_reason": "max_tokens"',
}
CHAT_ORDERS = [
    ([{"role": "tool", "tool_call_id": "c", "content": "x"}], "a call that no message before it makes"),
    ([*user("x"), {"role": "tool", "content": "x"}], "has no tool_call_id"),
    ([*user("x"), *user("y")], "must alternate"),
    ([{"role": "assistant", "content": "x"}, *user("y")], "must alternate"),
    ([{"role": "user", "content": "x", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}], "only the assistant"),
]


@pytest.mark.parametrize(("messages", "says"), CHAT_ORDERS, ids=lambda value: str(value)[:50])
def test_roles_out_of_order(
    server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch, messages: list[dict[str, Any]], says: str
) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", STRICT)
    refused(server.post("/v1/chat/completions", messages=messages, max_tokens=2), says)
    assert server.post("/v1/chat/completions", messages=user("x"), max_tokens=1).status_code == 200


def test_turns_of_one_role_are_one_in_the_apis_of_agents(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clients send such; what answers a call that was never made is refused there too."""
    monkeypatch.setattr(llm.tokenizer, "chat_template", STRICT)
    for path in APIS[1:]:
        assert server.post(path, **asked(path, [*user("x"), *user("y")], 1)).status_code == 200
        refused(server.post(path, **asked(path, [{"role": "assistant", "content": "x"}, *user("y")])), "must alternate")
    answer = [{"type": "function_call_output", "call_id": "c", "output": "x"}]
    refused(server.post("/v1/responses", input=[*user("x"), *answer]), "'c'")
    result = {"type": "tool_result", "tool_use_id": "c", "content": "x"}
    refused(server.post("/v1/messages", messages=user([result]), max_tokens=2), "'c'")


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("text", [b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", rb"\ud800"])
def test_text_that_is_no_unicode(server: Running, path: str, text: bytes) -> None:
    body = json.dumps(asked(path, user("TEXT"), 2)).encode().replace(b"TEXT", text)
    response = server.http.post(path, content=body, headers={"content-type": "application/json"})
    said = response.json()["error"]["message"]
    wanted = "half of a character" if b"d8" in text or text[:2] == b"\xed\xa0" else "The body is not JSON in UTF-8."
    assert response.status_code == 400 and "\n" not in said and wanted in said, said


@pytest.mark.parametrize("path", APIS)
def test_no_body_at_all(server: Running, path: str) -> None:
    response = server.http.post(path, content=b"", headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"].startswith("The request has no body"), response.text


PARTS = {
    "/v1/chat/completions": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
    ],
    "/v1/responses": [
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "input_file", "file_id": "f"},
    ],
    "/v1/messages": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
    ],
}


@pytest.mark.parametrize(("path", "part"), [(path, part) for path, parts in PARTS.items() for part in parts], ids=str)
def test_images_audio_and_files(server: Running, path: str, part: dict[str, Any]) -> None:
    text = {"type": "input_text" if path == "/v1/responses" else "text", "text": "What is it?"}
    error = refused(server.post(path, **asked(path, user([text, part]))), "text only")
    assert part["type"] in error["message"]


@pytest.mark.parametrize("path", APIS)
def test_a_body_of_50_megabytes(server: Running, path: str) -> None:
    """By the limit that a server has where nobody sets one."""
    body = json.dumps(asked(path, user("TEXT"))).encode().replace(b"TEXT", b"x" * (50 << 20))
    response = server.http.post(path, content=body, headers={"content-type": "application/json"})
    refused(response, "larger than", 413)


@pytest.mark.parametrize("path", APIS)
def test_a_client_that_never_reads_keeps_nobody_waiting(start: Start, llm: LLM, path: str) -> None:
    """Its answer is larger than what lies between the two, and its row is free as soon as the text is written."""
    server = start()
    body = json.dumps(asked(path, user("x"), 400, stream=True, ignore_eos=True)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        silent.connect(("127.0.0.1", server.port))
        silent.sendall(head.encode() + body)
        until(lambda: llm.scheduler.running)
        for _ in range(3):
            assert server.post(path, **asked(path, user("y"), 3)).status_code == 200
        until(lambda: llm.scheduler.idle)
        assert server.post(path, **asked(path, user("z"), 3)).status_code == 200
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "param", "says"),
    [
        ('"metadata": {"a": NaN}', "metadata", "a number that JSON does not know"),
        ('"reasoning": {"a": -Infinity}', "reasoning", "a number that JSON does not know"),
        (r'"metadata": {"a": "\ud83d"}', "metadata", "half of a character"),
        (r'"tools": [{"type": "web_search", "a": "\ud83d"}]', "tools", "half of a character"),
    ],
    ids=str,
)
def test_what_an_answer_could_not_repeat_is_refused(server: Running, text: str, param: str, says: str, stream: bool) -> None:
    content = f'{{"input": "x", "max_output_tokens": 2, "stream": {json.dumps(stream)}, {text}}}'
    response = server.http.post("/v1/responses", content=content, headers={"content-type": "application/json"})
    assert refused(response, says)["param"] == param


@pytest.mark.parametrize("path", APIS)
def test_no_template_is_taken_from_a_client(server: Running, path: str) -> None:
    for name, value in (("chat_template", "{{ 1 }}"), ("tokenize", True), ("messages", []), ("continue_final_message", True)):
        response = server.post(path, **asked(path, user("x"), chat_template_kwargs={name: value}))
        assert refused(response, name)["param"] == "chat_template_kwargs"
    deep = json.loads('{"a":' * 900 + "1" + "}" * 900)
    refused(server.post(path, **asked(path, user("x"), chat_template_kwargs=deep)), "nested deeper than 100 levels")


@pytest.mark.parametrize("path", APIS[:1])
def test_deep_arguments_of_an_earlier_call_are_refused(server: Running, path: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":' * 600 + "1" + "}" * 600}}
    messages = [*user("x"), {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "y"}]
    refused(server.post(path, **asked(path, messages)), "messages.1.tool_calls.0.function.arguments is nested deeper")


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        ("/v1/responses", {"tool_choice": {"type": "function", "name": "f", "namespace": ["x"]}}, "tool_choice"),
        ("/v1/responses", {"input": [{"type": "additional_tools", "tools": 5}]}, "tools"),
        ("/v1/responses", {"input": [{"type": "function_call", "call_id": "a", "name": "f", "namespace": 5}]}, "input"),
        ("/v1/messages", {"tool_choice": {"type": ["any"]}}, "tool_choice"),
        ("/v1/chat/completions", {"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ],
    ids=str,
)
def test_values_of_odd_kinds_are_refused_by_name(server: Running, path: str, more: dict[str, Any], param: str) -> None:
    error = refused(server.post(path, **{**asked(path, user("x")), **more}), "")
    assert error["param"] == param


def test_more_texts_than_may_ever_wait_are_no_reason_to_try_again(start: Start, llm: LLM) -> None:
    server = start(max_queue=2)
    body = {"prompt": ["x"] * (llm.plan.rows + 3), "max_tokens": 1}
    response = server.post("/v1/completions", **body)
    refused(response, f"asks for {llm.plan.rows + 3} texts, and {llm.plan.rows + 2} may run and wait")
    assert "retry-after" not in response.headers
    assert server.post("/v1/completions", **{**body, "prompt": body["prompt"][:-1]}).status_code == 200


def test_a_conversation_has_the_tokens_that_a_chat_reads(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", TEMPLATE)
    asks = scripted(llm, monkeypatch, ["x"])
    messages = [*user("a"), {"role": "assistant", "content": "b"}]
    for more in ({}, {"continue_final_message": True}, {"chat_template_kwargs": {"add_generation_prompt": False}}):
        server.post("/v1/chat/completions", **asked("/v1/chat/completions", messages, **more))
        tokens = server.post("/tokenize", messages=messages, **more).json()["tokens"]
        assert llm.tokenizer.decode(tokens) == asks[-1]["prompt"], more
    assert len({ask["prompt"] for ask in asks}) == 2
