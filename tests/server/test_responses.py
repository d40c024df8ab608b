"""/v1/responses: what Codex and the openai package send and read."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import Running, Start, scripted, slowed
from tests.server.test_reasoning import THINKS
from tests.server.test_tools import TEMPLATE
from understudy import LLM

RECORDED = json.loads((Path(__file__).parent / "recorded" / "codex.json").read_text())
CLOCK: Any = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}, "strict": False}
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
BOTH = "{% if tools %}{{ tools | tojson }}{% endif %}" + THINKS


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each is named as its type is, and they are numbered."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in "".join(response.iter_text()).split("\n\n") if block]
    found = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name.removeprefix("event: ") for name, _ in blocks] == [event["type"] for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_the_openai_client_reads_whole_answers(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(llm, monkeypatch, ["It is", " noon."])
    found = client_of(server).responses.create(
        model="tiny", input="What time is it?", instructions="Be brief.", max_output_tokens=9, temperature=0.5, store=False
    )
    assert found.output_text == "It is noon." and found.status == "completed" and found.usage
    assert found.usage.output_tokens == 2 and found.usage.total_tokens == found.usage.input_tokens + 2
    assert asked[0]["prompt"] == "System: Be brief.\nUser: What time is it?\nAssistant:"
    assert asked[0]["params"].temperature == 0.5


def test_the_openai_client_reads_streams(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", BOTH)
    scripted(llm, monkeypatch, ["hm", "</think>", "I look.", CALL])
    with client_of(server).responses.stream(model="tiny", input="Time?", tools=[CLOCK]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    reasoning, message, call = final.output
    assert reasoning.type == "reasoning" and reasoning.content and reasoning.content[0].text == "hm"
    assert message.type == "message" and message.content[0].to_dict()["text"] == "I look."
    assert call.type == "function_call" and call.name == "clock" and json.loads(call.arguments) == {"zone": "UTC"}
    assert kinds[-1] == "response.completed" and final.usage and final.usage.output_tokens_details.reasoning_tokens == 1


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["what"])
def test_recorded_conversations_of_codex(
    agents: Running, roomy: LLM, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any]
) -> None:
    monkeypatch.setattr(roomy.tokenizer, "chat_template", recorded.get("template") or TEMPLATE)
    asked = scripted(roomy, monkeypatch, *[turn["reply"] for turn in recorded["turns"]])
    items: list[dict[str, Any]] = []
    for place, turn in enumerate(recorded["turns"]):
        items += turn["input"]
        # What Codex sends back of an item has no id, and no status.
        body = {**recorded["body"], "model": "tiny", "input": items, "max_output_tokens": len(turn["reply"])}
        with agents.http.stream("POST", "/v1/responses", json=body) as response:
            assert response.status_code == 200, response.read()
            events = streamed(response)
        assert [event["type"] for event in events] == turn["events"]
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert [trimmed(item) for item in done] == turn["output"]
        assert events[-1]["response"]["output"] == done and events[-1]["response"]["id"] == events[0]["response"]["id"]
        assert {"input_tokens", "output_tokens", "total_tokens", "input_tokens_details"} <= set(events[-1]["response"]["usage"])
        for text in turn["prompt"]:
            assert text in asked[place]["prompt"], asked[place]["prompt"]
        ids = {item["call_id"] for item in done if "call_id" in item}
        items += [sent_back(item) for item in done]
        if ids:
            (id,) = ids
            items = json.loads(json.dumps(items).replace("THE_CALL", id))
            recorded["turns"][place + 1]["input"] = json.loads(
                json.dumps(recorded["turns"][place + 1]["input"]).replace("THE_CALL", id)
            )


def trimmed(item: dict[str, Any]) -> dict[str, Any]:
    """An item without what is drawn anew each time."""
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


def sent_back(item: dict[str, Any]) -> dict[str, Any]:
    """An item as Codex sends it back: without its id, and reasoning without its text, which its encrypted form stands for."""
    return {name: value for name, value in item.items() if name != "id" and not (item["type"] == "reasoning" and name == "content")}


def test_a_stream_says_that_it_is_alive_by_events(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(keep_alive=0.05)
    go = slowed(llm, monkeypatch)
    seen = 0
    with server.http.stream("POST", "/v1/responses", json={"input": "x", "max_output_tokens": 2, "stream": True}) as response:
        for line in response.iter_lines():
            seen += line == "event: response.in_progress"
            if seen == 4:
                go.set()
    assert seen >= 4


def test_a_conversation_that_is_too_long_is_told_as_codex_wants_it(server: Running) -> None:
    body = {"input": "x" * 600, "stream": True}
    with server.http.stream("POST", "/v1/responses", json=body) as response:
        events = streamed(response)
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
    whole = server.post("/v1/responses", input="x" * 600)
    assert whole.status_code == 400 and whole.json()["error"]["code"] == "context_length_exceeded"


def test_an_answer_that_is_cut_off_is_incomplete(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(llm, monkeypatch, ["a", "b", "c"])
    found = server.post("/v1/responses", input="x", max_output_tokens=2).json()
    assert found["status"] == "incomplete" and found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["output"][0]["content"][0]["text"] == "ab"


def test_an_error_in_the_middle_is_an_event(start: Start, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(request_timeout=0.2)
    go = slowed(llm, monkeypatch)
    with server.http.stream("POST", "/v1/responses", json={"input": "x", "stream": True}) as response:
        events = streamed(response)
    go.set()
    assert events[-1]["type"] == "response.failed" and "0.2 s" in events[-1]["response"]["error"]["message"]


def test_a_text_may_be_held_to_a_schema(server: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"]}
    form = {"format": {"type": "json_schema", "name": "x", "schema": {**schema, "additionalProperties": False}}}
    found = server.post("/v1/responses", input="x", text=form, max_output_tokens=60).json()
    assert isinstance(json.loads(found["output"][0]["content"][0]["text"])["a"], int)


@pytest.mark.parametrize("streams", [False, True])
def test_log_probabilities_of_a_message_are_those_of_its_own_tokens(
    server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    """Tokens of reasoning, of marks and of blanks between are left out, and parts join to the text of the message."""
    monkeypatch.setattr(llm.tokenizer, "chat_template", THINKS)
    scripted(llm, monkeypatch, ["hm", "</think>", "\n\n", "It ", "is", " 4."])
    body: Any = {"model": "tiny", "input": "x", "top_logprobs": 3, "include": ["message.output_text.logprobs"], "temperature": 0.9}
    client = client_of(server)
    if streams:
        events = list(client.responses.create(**body, stream=True, extra_body={"seed": 2}))
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        (done,) = (event for event in events if event.type == "response.output_text.done")
        told: Any = [entry for event in deltas for entry in event.logprobs]
        assert [entry.to_dict() for entry in done.logprobs] == [entry.to_dict() for entry in told]
        final = events[-1].response  # type: ignore[union-attr]
    else:
        final = client.responses.create(**body, extra_body={"seed": 2})
        told = final.output[1].content[0].logprobs
    chat = server.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=3, temperature=0.9, seed=2
    ).json()["choices"][0]["logprobs"]["content"]
    assert [entry.to_dict() for entry in told] == chat[3:6], "the bits are those of a chat"
    part = final.output[1].content[0]
    assert [entry.to_dict() for entry in part.logprobs] == chat[3:6] and part.text == "It is 4."
    assert all(len(entry.top_logprobs) == 3 for entry in told) and final.to_dict()["top_logprobs"] == 3


def test_log_probabilities_join_to_the_text(server: Running) -> None:
    """By the tokens of the model itself, in which characters may have several."""
    body = {"input": "x", "max_output_tokens": 40, "include": ["message.output_text.logprobs"], "temperature": 1.0, "seed": 5}
    part = server.post("/v1/responses", **body).json()["output"][0]["content"][0]
    data = bytes(byte for entry in part["logprobs"] for byte in entry["bytes"])
    assert data.decode(errors="replace") == part["text"] and all(entry["top_logprobs"] == [] for entry in part["logprobs"])
    assert server.post("/v1/responses", **{**body, "include": []}).json()["output"][0]["content"][0]["logprobs"] == []


def test_what_is_skipped_is_named(server: Running) -> None:
    tools = [{"type": "web_search"}, {"type": "image_generation"}]
    items = [{"role": "user", "content": "x"}, {"type": "web_search_call", "id": "ws_1"}]
    found = server.post("/v1/responses", input=items, tools=tools, max_output_tokens=1, prompt_cache_key="k")
    assert found.status_code == 200, found.text
    named = "input.web_search_call, prompt_cache_key, tools.image_generation, tools.web_search"
    assert found.headers["x-understudy-ignored"] == named


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "Field required"),
        ({"input": []}, "input", "conversation"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"input": "x", "background": True}, "background", "not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "whole conversation"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input", "text only"),
        ({"input": [{"role": "alien", "content": "x"}]}, "input", "'alien'"),
        ({"input": [{"role": "user", "content": 3}]}, "input", "list of parts"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input", "'c'"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input", "call_id"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools", "needs a name"),
        ({"input": "x", "tools": [{}]}, "tools", "type"),
        ({"input": "x", "tools": [{"type": "namespace", "name": "n"}]}, "tools", "list"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice", "function"),
        ({"input": "x", "temperature": "hot"}, "temperature", "number"),
        ({"input": "x", "max_output_tokens": "many"}, "max_output_tokens", "integer"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format", "'xml'"),
        ({"input": "x", "reasoning": {"effort": "huge"}}, "reasoning.effort", "Input should be"),
        ({"input": "x", "best_of": 3}, "best_of", "not supported"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"input": "x", "top_logprobs": "3"}, "top_logprobs", "integer"),
    ],
    ids=str,
)
def test_bad_bodies_are_refused_by_name(server: Running, body: dict[str, Any], param: str, says: str) -> None:
    response = server.post("/v1/responses", **body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param and says in error["message"], error
