"""Tools: told to the model, called whole and streamed, and answered."""

import json
from collections import OrderedDict
from typing import Any

import openai
import pytest

from tests.server.conftest import Running, scripted
from tests.server.test_server import CHAT, events
from understudy import LLM
from understudy.api import strict_calls
from understudy.replies import format as reply_format
from understudy.replies.families import CallShape, Family

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}{{ call.function.arguments | tojson }}</tool_call>"
    "{% endfor %}"
    "{% if m.role == 'tool' %} of {{ m.name }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = ["Let me", " see.\n<tool", f"_call>{CALL[11:]}\n<tool_call>", '{"name": "clock", "arguments": {}}</tool', "_call>"]


@pytest.fixture
def calling(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr(llm.tokenizer, "chat_template", TEMPLATE)
    return llm


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_parallel_calls_are_read_whole_and_streamed(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(calling, monkeypatch, TWO)
    body: dict[str, Any] = {"model": "tiny", "messages": CHAT, "tools": [WEATHER, CLOCK]}
    choice = client_of(server).chat.completions.create(**body).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    whole = [call.to_dict() for call in choice.message.tool_calls or ()]
    functions = [{"name": "get_weather", "arguments": '{"city": "Paris"}'}, {"name": "clock", "arguments": "{}"}]
    assert [call["function"] for call in whole] == functions
    assert len({call["id"] for call in whole}) == 2 and all(call["type"] == "function" for call in whole)
    assert '"Tells the weather."' in asked[0]["prompt"] and '"name": "clock"' in asked[0]["prompt"]
    chunks = list(client_of(server).chat.completions.create(**body, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    calls = [call.to_dict() for delta in deltas for call in delta.tool_calls or ()]
    assert [call["index"] for call in calls] == [0, 1] and [call["function"] for call in calls] == functions
    assert all(call["id"] and call["type"] == "function" for call in calls)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_conversation_with_calls_and_results_goes_on(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(calling, monkeypatch, [CALL], ["Sunny."])
    messages: list[Any] = [*CHAT]
    client = client_of(server)
    tools: Any = [WEATHER]
    first = client.chat.completions.create(model="tiny", messages=messages, tools=tools).choices[0].message
    assert first.content is None and first.tool_calls
    messages += [first, {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": [{"type": "text", "text": "sun"}]}]
    second = client.chat.completions.create(model="tiny", messages=messages, tools=tools).choices[0]
    assert second.message.content == "Sunny." and second.finish_reason == "stop" and not second.message.tool_calls
    assert '<assistant><tool_call>get_weather{"city": "Paris"}</tool_call><tool>sun of get_weather' in asked[1]["prompt"]


def test_tool_choice_none_tells_no_tools_and_reads_no_calls(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(calling, monkeypatch, [CALL])
    body: dict[str, Any] = {"messages": CHAT, "tools": [WEATHER], "tool_choice": "none"}
    message = server.post("/v1/chat/completions", **body).json()["choices"][0]["message"]
    assert message["content"] == CALL and "tool_calls" not in message and "get_weather" not in asked[0]["prompt"]


def test_one_call_alone_where_calls_may_not_be_parallel(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(calling, monkeypatch, TWO)
    body: dict[str, Any] = {"messages": CHAT, "tools": [WEATHER, CLOCK], "parallel_tool_calls": False}
    calls = server.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather"]


FORMS = [
    "required",
    {"type": "function", "function": {"name": "add"}},
    {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}},
]
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": NUMBER, "b": NUMBER},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", FORMS, ids=["required", "named", "allowed"])
def test_a_call_that_is_required_is_made_by_any_model(
    server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch, choice: Any
) -> None:
    """The model is random: what it writes is what the grammar makes of it."""
    monkeypatch.setattr(llm.tokenizer, "chat_template", "{% if tools %}{{ tools | length }}{% endif %}{{ messages[-1].content }}")
    body: dict[str, Any] = {"messages": CHAT, "tools": [ADD], "tool_choice": choice, "max_tokens": 150, "temperature": 1.0}
    body |= {"parallel_tool_calls": False, "seed": 3}
    found = server.post("/v1/chat/completions", **body).json()
    choice = found["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "add"
    arguments = json.loads(call["function"]["arguments"])
    assert set(arguments) == {"a", "b"} and all(0 <= value <= 99 for value in arguments.values())
    assert found["understudy"]["accepted"] > 0
    with server.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        calls = [call for chunk in events(response) for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [choice["message"]["tool_calls"][0]["function"]]


# The same tool in each API.
BAD_SCHEMA = {"type": "object", "if": {}, "then": {}}
ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
BIG = {"type": "object", "description": "x" * (1 << 18)}
WRONG_TYPE = {"type": "object", "properties": {"a": {"type": "strin"}}}
NAMED = {"chat": {"type": "function", "function": {"name": "f"}}, "responses": {"type": "function", "name": "f"}}
CHOICES: dict[str, dict[str, Any]] = {
    "chat": {"required": "required", "named": NAMED["chat"], "auto": "auto"},
    "responses": {"required": "required", "named": NAMED["responses"], "auto": "auto"},
    "messages": {"required": {"type": "any"}, "named": {"type": "tool", "name": "f"}, "auto": {"type": "auto"}},
}


def asked_with(api: str, parameters: Any, choice: str, strict: bool | None = None) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask for an answer that may, or must, call a tool with these parameters."""
    told = {"name": "f", "strict": strict}
    path, tool, body = {
        "chat": ("/v1/chat/completions", {"type": "function", "function": {**told, "parameters": parameters}}, {"messages": CHAT}),
        "responses": ("/v1/responses", {"type": "function", **told, "parameters": parameters}, {"input": "Hello"}),
        "messages": ("/v1/messages", {**told, "input_schema": parameters}, {"messages": CHAT, "max_tokens": 5}),
    }[api]
    return path, {"tools": [tool], "tool_choice": CHOICES[api][choice], **body}


@pytest.mark.parametrize("api", CHOICES)
@pytest.mark.parametrize("choice", ["required", "named", "auto"])
@pytest.mark.parametrize(
    ("parameters", "says"),
    [(BAD_SCHEMA, "Unimplemented"), (ENDLESS, "without end"), (BIG, "characters"), (WRONG_TYPE, "Invalid type: strin")],
    ids=["not supported", "cyclic", "huge", "no schema"],
)
def test_a_bad_schema_is_a_400_that_names_the_tool(
    server: Running, calling: LLM, api: str, choice: str, parameters: Any, says: str
) -> None:
    path, body = asked_with(api, parameters, choice)
    for stream in (False, True):
        response = server.post(path, **body, stream=stream)
        if parameters is BAD_SCHEMA and choice == "auto":
            assert response.status_code == 200, "it is told to the model, and enforced nowhere"
            continue
        error = response.json()["error"]
        assert response.status_code == 400 and error["param"] == "tools" and error["code"] == "invalid_function_parameters"
        assert error["message"].startswith("tools: the schema of 'f' ") and says in error["message"]
    assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("api", CHOICES)
def test_strict_is_kept_or_refused_where_calls_are_the_models_choice(
    server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    parameters = ADD["function"]["parameters"]
    path, body = asked_with(api, parameters, "auto", strict=True)
    asked: list[Any] = []
    request = calling.request
    monkeypatch.setattr(calling, "request", lambda ids, params, **more: asked.append(params) or request(ids, params, **more))  # type: ignore[func-returns-value]
    assert server.post(path, **body).status_code == 200
    assert asked[0].constraint is not None and '"maximum": 99' in asked[0].constraint.text
    assert server.post(path, **asked_with(api, parameters, "auto", strict=False)[1]).status_code == 200
    assert asked[1].constraint is None
    path, body = asked_with(api, BAD_SCHEMA, "auto", strict=True)
    response = server.post(path, **body)
    assert response.status_code == 400 and "Unimplemented" in response.json()["error"]["message"]
    # A model that writes its calls in XML.
    monkeypatch.setattr(calling.tokenizer, "chat_template", TEMPLATE + "{# <tool_call> <function= #}")
    path, body = asked_with(api, parameters, "auto", strict=True)
    response = server.post(path, **body)
    assert response.status_code == 400 and "leave strict out" in response.json()["error"]["message"]


def test_strict_calls_of_a_random_model_fit(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark before calls is one that it writes soon."""
    field = {"open_pattern": "7", "close": ";", "repeats": True, "content": "json"}
    short = Family("short", (), {"tool_calls": field}, "7", (CallShape(close=";"),))
    for module in (strict_calls, reply_format):
        monkeypatch.setattr(module, "family_of", lambda tokenizer: short)
    monkeypatch.setattr(llm.tokenizer, "chat_template", "{{ messages[-1].content }}")
    mark = llm.tokenizer("7")["input_ids"][0]
    tool = {"type": "function", "function": {**ADD["function"], "strict": True}}
    body: dict[str, Any] = {"messages": CHAT, "tools": [tool], "max_tokens": 300, "temperature": 1.0, "seed": 4}
    body |= {"logit_bias": {str(mark): 25.0}, "ignore_eos": True}
    found = server.post("/v1/chat/completions", **body).json()
    calls = found["choices"][0]["message"]["tool_calls"]
    assert calls and found["understudy"]["accepted"] > 0 and found["understudy"]["bytes_streamed"] > 0
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == {"a", "b"} and all(0 <= value <= 99 for value in arguments.values())


def test_only_allowed_tools_are_told(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(calling, monkeypatch, ["x"])
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "clock"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    server.post("/v1/chat/completions", messages=CHAT, tools=[WEATHER, CLOCK], tool_choice=choice)
    assert "clock" in asked[0]["prompt"] and "get_weather" not in asked[0]["prompt"]


def test_a_call_that_the_length_cuts_off_is_content(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(calling, monkeypatch, ["<tool_call>", '{"name": ', '"clock"'])
    choice = server.post("/v1/chat/completions", messages=CHAT, tools=[CLOCK], max_tokens=2).json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == '<tool_call>{"name": '


def test_log_probabilities_and_ids_of_all_tokens_are_told(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(calling, monkeypatch, TWO)
    body: dict[str, Any] = {"messages": CHAT, "tools": [WEATHER, CLOCK], "logprobs": True, "return_token_ids": True}
    whole = server.post("/v1/chat/completions", **body).json()["choices"][0]
    assert len(whole["logprobs"]["content"]) == len(whole["token_ids"]) == len(TWO)
    with server.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        choices = [chunk["choices"][0] for chunk in events(response)]
    told = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert told == whole["logprobs"]["content"]
    assert [token for choice in choices for token in choice.get("token_ids", [])] == whole["token_ids"]


LIST = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}]}
MADE = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"functions": [{"name": "f"}]}, "functions", "use tools"),
        ({"function_call": {"name": "f"}}, "function_call", "use tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"tools": [CLOCK, CLOCK]}, "tools", "stands twice"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools", "empty"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools.0.function.parameters", "valid"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [CLOCK], "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice", "one form"),
        ({"tools": [CLOCK], "tool_choice": "sometimes"}, "tool_choice", "must be"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "'f'"),
        ({"messages": [*CHAT, {"role": "tool", "content": "x"}]}, "messages", "messages.1: a message of a tool has no"),
        ({"messages": [*CHAT, MADE, {"role": "tool", "tool_call_id": "b", "content": "x"}]}, "messages", "'b'"),
        ({"messages": [{**MADE, "role": "user"}]}, "messages", "only the assistant"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages", "use tools"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]}, "messages", "use tools"),
        ({"messages": [LIST]}, "messages", "messages.0.tool_calls.0.function.arguments is not"),
    ],
    ids=str,
)
def test_bad_tools_are_refused_by_name(server: Running, body: dict[str, Any], param: str, says: str) -> None:
    response = server.post("/v1/chat/completions", **{"messages": CHAT, **body})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param and says in error["message"], error


def test_tokens_of_tools_are_counted_too(server: Running, calling: LLM) -> None:
    bare = server.post("/tokenize", messages=CHAT).json()["count"]
    told = server.post("/tokenize", messages=CHAT, tools=[WEATHER]).json()["count"]
    assert told > bare + len(json.dumps(WEATHER)) // 2


def test_metrics_count_tools_grammars_and_reasoning(server: Running, calling: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def figures() -> dict[str, float]:
        lines = server.http.get("/metrics").text.splitlines()
        names = ("tool_requests_total", "tool_calls_total", "reasoning_tokens_total", "grammar_requests_total")
        names += ("grammar_rejections_total", "grammar_compile_seconds_count", "grammar_compile_seconds_sum")
        values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}
        return {name: values.get(f"understudy:{name}", 0.0) for name in names}

    before = figures()
    monkeypatch.setattr(calling.maker.grammars, "_judged", OrderedDict())
    monkeypatch.setattr(calling.tokenizer, "chat_template", TEMPLATE + "{# <think></think> #}")
    with monkeypatch.context() as script:
        scripted(calling, script, ["<think>", "so", "</think>", *TWO], TWO)
        for stream in (False, True):
            assert server.post("/v1/chat/completions", messages=CHAT, tools=[WEATHER, CLOCK], stream=stream).status_code == 200
    body: dict[str, Any] = {"messages": CHAT, "max_tokens": 5}
    assert server.post("/v1/chat/completions", **body, response_format={"type": "json_object"}).status_code == 200
    bad = {"type": "json_schema", "json_schema": {"schema": {"type": "metric"}}}
    assert server.post("/v1/chat/completions", **body, response_format=bad).status_code == 400
    server.post("/v1/chat/completions", **body)
    found = {name: value - before[name] for name, value in figures().items()}
    seconds = found.pop("grammar_compile_seconds_sum")
    assert 0 < seconds < 30
    # Compiled were the schemas of two tools, any object, and what is none.
    assert found.pop("grammar_compile_seconds_count") in (3, 4), "any object may have been compiled before"
    assert found == {
        "tool_requests_total": 2,
        "tool_calls_total": 4,
        "reasoning_tokens_total": 1,
        "grammar_requests_total": 1,
        "grammar_rejections_total": 1,
    }
