"""Reasoning comes apart from the content, whole and streamed, and is counted."""

from typing import Any

import openai
import pytest

from tests.server.conftest import Running, scripted
from tests.server.test_server import CHAT, events
from understudy import LLM, ReasoningBudget, SamplingParams

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


BRIEF: dict[str, Any] = {"max_tokens": 60, "temperature": 0.9, "seed": 4}
DIGITS = {"structured_outputs": {"regex": "[0-9]{3}"}}
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": CHAT, **BRIEF, "thinking_token_budget": 5}),
    ("/v1/chat/completions", {"messages": CHAT, **BRIEF, "reasoning": {"max_tokens": 5}}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 60, "temperature": 0.9, "seed": 4, "reasoning": {"max_tokens": 5}}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 60, "temperature": 0.9, "seed": 4, "thinking_token_budget": 5}),
    ("/v1/messages", {"messages": CHAT, **BRIEF, "thinking": {"type": "enabled", "budget_tokens": 5}}),
]


def parts_of(answer: dict[str, Any]) -> tuple[str, str]:
    """The reasoning and the content of an answer, whatever API it is of."""
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        return message["reasoning"], message["content"]
    if "output" in answer:
        reasoning, message = answer["output"]
        return reasoning["content"][0]["text"], message["content"][0]["text"]
    thinking, text = answer["content"]
    return thinking["thinking"], text["text"]


@pytest.mark.parametrize(("path", "body"), WAYS)
def test_a_spent_budget_ends_reasoning_and_a_form_begins_there(
    server: Running, thinking: LLM, path: str, body: dict[str, Any]
) -> None:
    """The model is random, and would reason for ever."""
    found = server.post(path, **body, **DIGITS)
    assert found.status_code == 200, found.text
    assert "x-understudy-ignored" not in found.headers
    reasoning, content = parts_of(found.json())
    assert 0 < len(reasoning.encode()) <= 8 and len(content) == 3 and content.isdigit()
    usage = found.json()["usage"]
    details = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {"reasoning_tokens": 5}
    assert 0 < details["reasoning_tokens"] <= 8
    # The text is the one that the model gives without drafting.
    assert len(parts_of(server.post(path, **body).json())[1]) > 3


def test_a_budget_is_the_text_of_the_model_alone(server: Running, thinking: LLM, plain: LLM) -> None:
    ids = thinking.tokenizer(f"<user>{CHAT[0]['content']}\n<assistant><think>\n")["input_ids"]
    found = server.post("/v1/chat/completions", **WAYS[0][1], return_token_ids=True).json()["choices"][0]
    params = SamplingParams(max_new_tokens=60, temperature=0.9, seed=4, reasoning_budget=ReasoningBudget(5))
    assert found["prompt_token_ids"] == ids and found["token_ids"] == plain.generate([ids], params)[0].token_ids


def test_no_budget_is_needed_where_nothing_is_marked(server: Running) -> None:
    """Claude Code sends one to whatever model there is."""
    body = {"messages": CHAT, "max_tokens": 2, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    assert server.post("/v1/messages", **body).json()["usage"]["output_tokens"] == 2


@pytest.mark.parametrize(("path", "body", "param", "says"), [
    ("/v1/chat/completions", {"thinking_token_budget": -1}, "thinking_token_budget", "0 or more"),
    ("/v1/chat/completions", {"thinking_token_budget": "5"}, "thinking_token_budget", "integer"),
    ("/v1/chat/completions", {"thinking_token_budget": 5, "reasoning": {"max_tokens": 6}}, "thinking_token_budget", "one of them"),
    ("/v1/chat/completions", {"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning_effort", "one of them"),
    ("/v1/completions", {"thinking_token_budget": 5}, "thinking_token_budget", "in chats alone"),
    ("/v1/responses", {"reasoning": {"max_tokens": -3}}, "reasoning.max_tokens", "0 or more"),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": -3}}, "thinking.budget_tokens", "0 or more"),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": "x"}}, "thinking.budget_tokens", "integer"),
], ids=str)  # fmt: skip
def test_budgets_without_a_sense_are_refused_by_name(
    server: Running, path: str, body: dict[str, Any], param: str, says: str
) -> None:
    asked = {"prompt": "x"} if path.endswith("/completions") and "chat" not in path else {"messages": CHAT}
    asked = {"input": "x"} if path.endswith("responses") else asked
    response = server.post(path, **asked, max_tokens=4, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == param and says in error["message"], error
