"""Reasoning comes apart from the content, whole and streamed, and is counted."""

from typing import Any

import openai
import pytest

from tests.server.conftest import Running, scripted
from tests.server.test_server import CHAT, events
from understudy import LLM

# As Qwen's templates do it: reasoning is opened for the model, and earlier reasoning is left out.
THINKS = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
THOUGHT = ["Two ", "and two", ".\n", "</th", "ink>", "\n\n", "It is", " 4."]


@pytest.fixture
def thinking(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr(llm.tokenizer, "chat_template", THINKS)
    return llm


def test_reasoning_is_a_field_of_its_own(server: Running, thinking: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(thinking, monkeypatch, THOUGHT)
    found = server.post("/v1/chat/completions", messages=CHAT).json()
    message = found["choices"][0]["message"]
    assert message["content"] == "It is 4."
    assert message["reasoning_content"] == message["reasoning"] == "Two and two."
    assert found["usage"]["completion_tokens"] == 8
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert asked[0]["prompt"].endswith("<assistant><think>\n")


def test_streamed_reasoning_joins_to_the_same(server: Running, thinking: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(thinking, monkeypatch, THOUGHT)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "It is 4."
    for name in ("reasoning_content", "reasoning"):
        assert "".join(getattr(delta, name, None) or "" for delta in deltas) == "Two and two."
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens_details
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 2


def test_effort_switches_reasoning_off_where_the_template_can(
    server: Running, thinking: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = scripted(thinking, monkeypatch, ["4", " it is."])
    found = server.post("/v1/chat/completions", messages=CHAT, reasoning_effort="none").json()["choices"][0]["message"]
    assert asked[0]["prompt"].endswith("<think></think>")
    assert found["content"] == "4 it is." and "reasoning_content" not in found
    server.post("/v1/chat/completions", messages=CHAT, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert asked[1]["prompt"].endswith("<think>\n")
    error = server.post("/v1/chat/completions", messages=CHAT, reasoning_effort="huge").json()["error"]
    assert error["param"] == "reasoning_effort"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_of_earlier_answers_is_told_to_the_template(
    server: Running, thinking: LLM, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = scripted(thinking, monkeypatch, THOUGHT)
    messages = [*CHAT, {"role": "assistant", "content": "5", name: "hm"}]
    server.post("/v1/chat/completions", messages=messages)
    assert "<assistant><think>hm</think>5" in asked[0]["prompt"]


def test_reasoning_that_is_cut_off_is_reasoning(server: Running, thinking: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(thinking, monkeypatch, THOUGHT)
    found = server.post("/v1/chat/completions", messages=CHAT, max_tokens=2).json()
    choice = found["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["reasoning"] == "Two and two" and choice["message"]["content"] == ""
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


def test_two_choices_are_split_apart(server: Running, thinking: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(thinking, monkeypatch, THOUGHT, ["a", "</think>", "b"])
    with server.http.stream("POST", "/v1/chat/completions", json={"messages": CHAT, "n": 2, "stream": True}) as response:
        chunks = [chunk["choices"][0] for chunk in events(response)]
    for index, expected in ((0, ("Two and two.", "It is 4.")), (1, ("a", "b"))):
        deltas = [chunk["delta"] for chunk in chunks if chunk["index"] == index]
        told = tuple("".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning", "content"))
        assert told == expected


def test_a_model_that_marks_nothing_is_read_as_it_was(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(llm, monkeypatch, ["<think>", "x", "</think>", "y"])
    message = server.post("/v1/chat/completions", messages=CHAT).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "<think>x</think>y", "refusal": None}
