"""Marks that are special tokens, which replies leave out of their text otherwise, are found all the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.server.conftest import Running, loaded
from tests.server.test_server import CHAT
from tests.tiny import save
from understudy import LLM
from understudy.batch import Member
from understudy.server.app import create_app
from understudy.server.settings import Settings

MARKS = ["[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"]
HERMES = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose tokenizer has special tokens for reasoning and calls."""
    directory: Path = tmp_path_factory.mktemp("marked")
    save(directory, "llama-tied", torch.bfloat16, max_position_embeddings=512, vocab_size=256 + len(MARKS))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(directory)
    with loaded(directory, tmp_path_factory, rows=1) as model:
        yield model


def test_special_tokens_mark_reasoning_and_calls(marked: LLM) -> None:
    text = '[THINK]hm[/THINK]so[TOOL_CALLS]clock[ARGS]{"a": 1}'
    wanted = [*marked.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert [marked.tokenizer.decode([token]) for token in wanted[:3]] == ["[THINK]", "h", "m"]
    server = Running(create_app(marked, settings := Settings(model_name="tiny")), settings)
    try:
        found = written(marked, server, wanted, tools=[CLOCK], max_tokens=len(wanted))
        message = found["choices"][0]["message"]
        assert message["reasoning"] == "hm" and message["content"] == "so"
        assert message["tool_calls"][0]["function"] == {"name": "clock", "arguments": '{"a": 1}'}
        assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
        # what the text must be begins after the reasoning, whose marks are tokens to a grammar
        wanted = [*marked.tokenizer(f"[THINK]hm[/THINK]{HERMES}", add_special_tokens=False)["input_ids"]]
        found = written(marked, server, wanted, tools=[CLOCK], max_tokens=len(wanted), tool_choice="required")
        message = found["choices"][0]["message"]
        assert message["reasoning"] == "hm" and message["tool_calls"][0]["function"]["name"] == "clock"
        wanted = [*marked.tokenizer('[THINK]hm[/THINK]\n{"a":1}', add_special_tokens=False)["input_ids"]]
        form = {"type": "json_object"}
        message = written(marked, server, wanted, max_tokens=len(wanted), response_format=form)["choices"][0]["message"]
        assert message["reasoning"] == "hm" and message["content"] == '{"a":1}'
        # without tools, their marks are no part of the text
        wanted = [*marked.tokenizer(text, add_special_tokens=False)["input_ids"]]
        plain = written(marked, server, wanted, max_tokens=len(wanted))["choices"][0]["message"]
        assert plain["content"] == 'soclock{"a": 1}' and "tool_calls" not in plain
    finally:
        server.stop()


def written(llm: LLM, server: Running, wanted: list[int], **body: Any) -> dict[str, Any]:
    """The answer of a target that chooses the tokens `wanted`, whatever is drafted."""

    def choose(member: Member, logits: torch.Tensor, place: int, after: torch.Tensor, *_: object) -> torch.Tensor:
        begin = member.sequence.prompt_length
        return torch.tensor([wanted[min(max(int(at) - begin, 0), len(wanted) - 1)] for at in after])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Member, "choose", choose)
        return dict(server.post("/v1/chat/completions", messages=CHAT, **body).json())
