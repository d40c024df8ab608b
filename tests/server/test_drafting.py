"""`return_drafting`: answers tell which tokens a draft had guessed and which the exact model chose where no guess was right."""

from __future__ import annotations

import pytest

from tests.server.conftest import Running, scripted
from tests.server.test_reasoning import THINKS, THOUGHT
from tests.server.test_server import events
from understudy import LLM, SamplingParams

CHAT = [{"role": "user", "content": "The quick brown fox"}]


def test_an_answer_tells_which_tokens_were_guessed(server: Running, llm: LLM) -> None:
    """The tokens join to the text, and the figures say the same as they do."""
    alone = llm.chat(CHAT, SamplingParams(max_new_tokens=40))
    body = {"messages": CHAT, "max_tokens": 40, "return_drafting": True}
    whole = server.post("/v1/chat/completions", **body).json()
    tokens = whole["choices"][0]["drafting"]["tokens"]
    assert "".join(token["text"] for token in tokens) == whole["choices"][0]["message"]["content"] == alone.text
    assert {token["kind"] for token in tokens} == {"content"}
    assert 0 < sum(token["drafted"] for token in tokens) <= whole["understudy"]["accepted"]
    passes = [token["pass"] for token in tokens]
    assert passes == sorted(passes) and passes[-1] <= whole["understudy"]["passes"] + 1
    # of a pass, what was guessed comes first, and at most one token is the exact model's own
    for number in set(passes):
        drafted = [token["drafted"] for token in tokens if token["pass"] == number]
        assert drafted == sorted(drafted, reverse=True) and drafted.count(False) <= 1


def test_chunks_bring_the_tokens_of_a_pass_and_the_figures_so_far(server: Running) -> None:
    body = {"messages": CHAT, "max_tokens": 30, "stream": True, "ignore_eos": True, "return_drafting": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        chunks = events(response)
    told = [chunk for chunk in chunks if "drafting" in chunk["choices"][0]]
    for chunk in told:
        choice = chunk["choices"][0]
        assert "".join(token["text"] for token in choice["drafting"]["tokens"]) == choice["delta"]["content"]
        assert chunk["understudy"]["row"] in (0, 1, 2) and chunk["understudy"]["peak_memory_bytes"] > 0
    counts = [chunk["understudy"]["tokens"] for chunk in told]
    assert counts == sorted(set(counts)) and counts[-1] == 30
    assert told[-1]["understudy"]["bytes_streamed"] > 0 and told[-1]["understudy"]["link_bytes_per_second"] > 0


def test_a_text_completion_tells_it_too_and_nobody_is_told_unasked(server: Running) -> None:
    found = server.post("/v1/completions", prompt="The quick", max_tokens=20, return_drafting=True).json()["choices"][0]
    assert "".join(token["text"] for token in found["drafting"]["tokens"]) == found["text"]
    plain = server.post("/v1/completions", prompt="The quick", max_tokens=20).json()["choices"][0]
    assert "drafting" not in plain and plain["text"] == found["text"]
    # the APIs of agents have no place for it, and say so
    answer = server.post("/v1/responses", input="Hi", max_output_tokens=16, return_drafting=True)
    assert answer.status_code == 200 and "return_drafting" in answer.headers["X-Understudy-Ignored"]


def test_reasoning_is_told_apart(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", THINKS)
    scripted(llm, monkeypatch, THOUGHT)
    body = {"messages": CHAT, "max_tokens": 60, "return_drafting": True}
    found = server.post("/v1/chat/completions", **body).json()["choices"][0]
    tokens = found["drafting"]["tokens"]
    texts = {kind: "".join(token["text"] for token in tokens if token["kind"] == kind) for kind in ("reasoning", "content")}
    assert texts == {"reasoning": "Two and two.", "content": "It is 4."}
    assert found["message"]["content"] == texts["content"] and found["message"]["reasoning"] == texts["reasoning"]
