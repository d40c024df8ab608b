"""/v1/messages: what Claude Code and the anthropic package send and read."""

import json
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests.server.conftest import Running, Start, scripted, slowed
from tests.server.test_responses import BOTH
from tests.server.test_tools import TEMPLATE
from understudy import LLM

RECORDED = json.loads((Path(__file__).parent / "recorded" / "claude_code.json").read_text())
CLOCK: Any = {"name": "clock", "description": "Tells the time.", "input_schema": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
ASK: Any = [{"role": "user", "content": "Time?"}]


def client_of(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each is named as its type is."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in "".join(response.iter_text()).split("\n\n") if block]
    found = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [event["type"] for event in found]
    return found


def test_the_anthropic_client_reads_whole_answers(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(llm, monkeypatch, ["It is", " noon."])
    more = {"temperature": 0.5, "top_k": 7}
    found = client_of(server).messages.create(
        model="tiny", messages=ASK, system="Be brief.", max_tokens=9, stop_sequences=["!"], extra_body=more
    )
    assert found.content[0].to_dict() == {"type": "text", "text": "It is noon."} and found.stop_reason == "end_turn"
    assert found.usage.output_tokens == 2 and found.usage.input_tokens + (found.usage.cache_read_input_tokens or 0) > 0
    assert asked[0]["prompt"] == "System: Be brief.\nUser: Time?\nAssistant:"
    params = asked[0]["params"]
    assert (params.temperature, params.top_k, params.stop, params.max_new_tokens) == (0.5, 7, ("!",), 9)


def test_the_anthropic_client_reads_streams(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", BOTH)
    scripted(llm, monkeypatch, ["hm", "</think>", "I ", "look.", CALL, CALL])
    with client_of(server).messages.stream(model="tiny", messages=ASK, tools=[CLOCK], max_tokens=9) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    thinking, text, first, second = final.content
    assert thinking.type == "thinking" and thinking.thinking == "hm"
    assert text.type == "text" and text.text == "I look."
    for call in (first, second):
        assert call.type == "tool_use" and call.name == "clock" and call.input == {"zone": "UTC"}
    assert final.stop_reason == "tool_use" and final.usage.output_tokens == 6
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"


def test_stops_and_limits_have_their_own_names(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(llm, monkeypatch, ["a", "b", "STOP"], ["a", "b", "c"])
    found = server.post("/v1/messages", messages=ASK, max_tokens=9, stop_sequences=["x", "STOP"]).json()
    assert found["stop_reason"] == "stop_sequence" and found["stop_sequence"] == "STOP" and found["content"][0]["text"] == "ab"
    found = server.post("/v1/messages", messages=ASK, max_tokens=2).json()
    assert found["stop_reason"] == "max_tokens" and found["stop_sequence"] is None


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["what"])
def test_recorded_conversations_of_claude_code(
    agents: Running, roomy: LLM, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any]
) -> None:
    monkeypatch.setattr(roomy.tokenizer, "chat_template", recorded.get("template") or TEMPLATE)
    asked = scripted(roomy, monkeypatch, *[turn["reply"] for turn in recorded["turns"]])
    messages: list[dict[str, Any]] = []
    id = ""
    for place, turn in enumerate(recorded["turns"]):
        messages += json.loads(json.dumps(turn["messages"]).replace("THE_CALL", id))
        body = {**recorded["body"], "model": "tiny", "messages": messages}
        counted = {name: value for name, value in body.items() if name not in ("max_tokens", "stream", "temperature", "metadata")}
        count = agents.post("/v1/messages/count_tokens?beta=true", **counted).json()["input_tokens"]
        with agents.http.stream("POST", "/v1/messages?beta=true", json=body) as response:
            assert response.status_code == 200, response.read()
            events = streamed(response)
        assert [event["type"] for event in events] == turn["events"]
        usage = events[-2]["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count == events[0]["message"]["usage"]["input_tokens"]
        # The billing line changes with each request, and everything after it is reused all the same.
        assert place == 0 or usage["cache_read_input_tokens"] > 500
        assert events[-2]["delta"]["stop_reason"] == turn["stop_reason"]
        for text in turn["prompt"]:
            assert text in asked[place]["prompt"], asked[place]["prompt"]
        assert "billing" not in asked[place]["prompt"]
        blocks = assembled(events)
        assert [{name: value for name, value in block.items() if name != "id"} for block in blocks] == turn["content"]
        messages.append({"role": "assistant", "content": blocks})
        id = next((block["id"] for block in blocks if block["type"] == "tool_use"), "")
        system = recorded["body"]["system"][0]
        system["text"] += str(place)


def assembled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks that a client makes of events."""
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            delta = {name: value for name, value in event["delta"].items() if name != "type"}
            for name, value in delta.items():
                if name == "partial_json":
                    inputs[event["index"]] = inputs.get(event["index"], "") + value
                else:
                    blocks[event["index"]][name] += value
    return [{**block, "input": json.loads(inputs[place])} if place in inputs else block for place, block in enumerate(blocks)]


def test_a_stream_says_that_it_is_alive_by_pings(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(keep_alive=0.05)
    go = slowed(llm, monkeypatch)
    seen = 0
    with server.http.stream("POST", "/v1/messages", json={"messages": ASK, "max_tokens": 2, "stream": True}) as response:
        for line in response.iter_lines():
            seen += line == "event: ping"
            if seen == 4:
                go.set()
    assert seen >= 4


def test_an_error_in_the_middle_is_an_event(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(request_timeout=0.2)
    go = slowed(llm, monkeypatch)
    with server.http.stream("POST", "/v1/messages", json={"messages": ASK, "max_tokens": 2, "stream": True}) as response:
        events = streamed(response)
    go.set()
    assert events[-1]["type"] == "error" and events[-1]["error"]["type"] == "timeout_error"


def test_an_error_after_a_sign_of_life_has_the_form_of_this_api(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(request_timeout=0.3, keep_alive=0.05)
    go = slowed(llm, monkeypatch)
    found = server.post("/v1/messages", messages=ASK, max_tokens=2)
    go.set()
    assert found.status_code == 200 and found.json()["type"] == "error" and "0.3 s" in found.json()["error"]["message"]


def test_errors_have_the_form_that_the_package_knows(start: Start) -> None:
    server = start(api_keys=("secret",))
    client = client_of(server)
    with pytest.raises(anthropic.AuthenticationError, match="valid key"):
        client.messages.create(model="tiny", messages=ASK, max_tokens=2)
    keyed = anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0)
    with pytest.raises(anthropic.NotFoundError, match="is not here"):
        keyed.messages.create(model="claude-opus-9", messages=ASK, max_tokens=2)
    long: Any = [{"role": "user", "content": "x" * 600}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        keyed.messages.create(model="tiny", messages=long, max_tokens=2)
    assert keyed.messages.count_tokens(model="tiny", messages=ASK).input_tokens > 5


def test_thinking_is_switched_off_where_it_is_disabled(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", BOTH)
    asked = scripted(llm, monkeypatch, ["x"])
    for thinking in ({"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
        found = server.post("/v1/messages", messages=ASK, max_tokens=2, thinking=thinking)
        assert found.status_code == 200
    assert [each["prompt"].endswith("<think></think>") for each in asked] == [True, False, False]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"max_tokens": None}, "max_tokens", "valid integer"),
        ({"messages": []}, "messages", "conversation"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "user"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages", "messages.0.content.0: this model"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]}, "messages", "'t'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}]}, "messages", "tool_use needs"),
        ({"system": [{"type": "image"}]}, "system", "text only"),
        ({"tools": [{"name": 3}]}, "tools.0.function.name", "string"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice", "'f'"),
        ({"tool_choice": {"type": "some"}}, "tool_choice", "auto, any"),
        ({"thinking": {"type": "deep"}}, "thinking", "'deep'"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort", "Input should be"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format", "json_schema"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "not supported"),
        ({"stop_sequences": "x"}, "stop_sequences", "list"),
    ],
    ids=str,
)
def test_bad_bodies_are_refused_by_name(server: Running, body: dict[str, Any], param: str, says: str) -> None:
    response = server.post("/v1/messages", **{"messages": ASK, "max_tokens": 2, **body})
    found = response.json()
    assert response.status_code == 400 and found["type"] == "error", found
    error = found["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param and says in error["message"], error


def test_what_is_skipped_is_named(server: Running) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "content": [
        {"type": "redacted_thinking", "data": "?"}, {"type": "text", "text": "y"}]}, *ASK]  # fmt: skip
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    found = server.post("/v1/messages", messages=messages, max_tokens=1, tools=tools, metadata={"user_id": "u"})
    assert found.status_code == 200, found.text
    assert found.headers["x-understudy-ignored"] == "messages.redacted_thinking, metadata, tools.web_search_20250305"


def test_a_last_message_of_the_assistant_is_the_beginning_of_the_reply(
    server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(llm, monkeypatch, [" three"])
    begun = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    found = server.post("/v1/messages", messages=begun, max_tokens=9).json()
    assert found["content"] == [{"type": "text", "text": " three"}]
    assert asked[0]["prompt"] == "User: Count.\nAssistant: One, two,"
    counted = server.post("/v1/messages/count_tokens", messages=begun).json()["input_tokens"]
    assert counted == found["usage"]["input_tokens"] + found["usage"]["cache_read_input_tokens"]
    # a template says it in its own way, and the client may want a message of its own
    monkeypatch.setattr(llm.tokenizer, "chat_template", TEMPLATE)
    server.post("/v1/messages", messages=begun, max_tokens=9)
    assert asked[1]["prompt"].endswith("<assistant>One, two,")
    server.post("/v1/messages", messages=begun, max_tokens=9, continue_final_message=False)
    assert asked[2]["prompt"].endswith("<assistant>One, two,<assistant>")
