"""A reply that may call strict tools is free up to a call, whose arguments fit the tool's schema; the same drafted and not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.api.test_enforced import COMPILER, SCHEMA, fits
from tests.test_grammar_compiler import sentence_pieces
from tests.tiny import byte_tokenizer, opened, save
from understudy import LLM, Constraint, SamplingParams
from understudy.api import strict_calls
from understudy.api.enforced import Thought
from understudy.api.errors import ApiError
from understudy.api.messages import ToolUse
from understudy.api.strict_calls import strict_reply
from understudy.grammar_compiler import GrammarCompiler
from understudy.replies.families import FAMILIES, REASONING, CallShape, Family
from understudy.replies.format import START, ReplyFormat

TOKENIZER = byte_tokenizer()
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", 'g"é')]
USE = ToolUse(TOOLS, strict=frozenset("f"))
SHAPED = {family.name: family for family in FAMILIES if family.shapes}
THOUGHTS = {
    "": Thought(),
    "<think>is it <tool_call>?</think>\n\n": Thought.of(TOKENIZER, REASONING[0], begun=False),
    "it is.</think>\n\n": Thought.of(TOKENIZER, REASONING[0], begun=True),
}
FIT, UNFIT = '{"a": 3}', '{"a": "3"}'


def read(family: Family) -> ReplyFormat:
    return ReplyFormat({**family.fields, "content": {"content_args": {"strip": False}}}, START, TOOLS)


def made(family: Family, thought: Thought, own: Constraint | None = None) -> Constraint:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_calls, "family_of", lambda tokenizer: family)
        return strict_reply(TOKENIZER, read(family), USE, thought, own)


def call(family: Family, shape: CallShape, name: str, arguments: str) -> str:
    told = json.dumps(name, ensure_ascii=False)
    one = f'{{"name": {told}, "{shape.key}": {arguments}}}' if shape.key else f"{name}{shape.between}{arguments}"
    return f"{family.opened}{f'[{one}]' if shape.listed else one}{shape.close}"


def whole(constraint: Constraint, text: str) -> bool:
    """Whether `text` may end so."""
    state = COMPILER.state(constraint, {0})
    return fits(constraint, text) and bool(state.allowed(TOKENIZER(text)["input_ids"])[0])


@pytest.mark.parametrize("before", THOUGHTS)
@pytest.mark.parametrize("name", SHAPED)
def test_a_call_fits_its_schema_wherever_it_comes(name: str, before: str) -> None:
    family = SHAPED[name]
    if before and not family.opened:
        with pytest.raises(ApiError, match="nothing tells a call of this model from a reply that reasons"):
            made(family, THOUGHTS[before])
        return
    held = made(family, THOUGHTS[before])
    for text in ("", "Well { [", f"{family.opened[:-1]} "):
        assert whole(held, before + text)
    for shape in family.shapes:
        for text in ("", "Let me see.\n") if family.opened else ("",):
            good = before + text + call(family, shape, "f", FIT)
            assert whole(held, good) and not whole(held, good[: good.rindex("3")])
            assert not fits(held, before + text + call(family, shape, "f", UNFIT))
            assert not fits(held, before + text + call(family, shape, "h", FIT))
            assert not shape.key or whole(held, before + text + call(family, shape, 'g"é', UNFIT)), "it is not strict"
            if family.opened:
                assert whole(held, good + "\nAnd\n" + call(family, shape, "f", FIT))
                assert not fits(held, good + "\nAnd\n" + call(family, shape, "f", UNFIT))


@pytest.mark.parametrize("name", SHAPED)
def test_beside_a_form_a_reply_is_calls_or_the_form(name: str) -> None:
    family = SHAPED[name]
    own = Constraint.json_schema({"type": "object", "properties": {"z": {"type": "null"}}, "required": ["z"]}, "response_format")
    if not family.opened:
        with pytest.raises(ApiError, match="from one that has a response_format"):
            made(family, Thought(), own)
        return
    for before, thought in THOUGHTS.items():
        held = made(family, thought, own)
        assert whole(held, before + '{"z": null}') and not fits(held, before + "Well") and not fits(held, before + '{"a"')
        for shape in family.shapes:
            assert whole(held, before + call(family, shape, "f", FIT))
            assert not fits(held, before + call(family, shape, "f", UNFIT))


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.shapes], ids=lambda family: family.name)
def test_a_model_that_writes_no_json_is_said_to_be_one(family: Family) -> None:
    with pytest.raises(ApiError, match="cannot be kept where calls are") as error:
        made(family, Thought())
    assert error.value.status == 400 and error.value.message.startswith("tools: strict of 'f' ")


def test_a_response_template_that_reads_calls_in_another_way_is_noticed() -> None:
    hermes = SHAPED["hermes"]
    other = ReplyFormat({"tool_calls": {"open": "<call>", "close": "</call>", "content": "json"}}, START, TOOLS)
    with pytest.raises(ApiError, match="writes no JSON"):
        strict_reply(TOKENIZER, other, USE, Thought(), None)
    assert strict_reply(TOKENIZER, read(hermes), USE, Thought(), None).kind == "grammar"


def test_a_mark_that_is_a_special_token_begins_a_call() -> None:
    tokenizer = sentence_pieces("llama")
    compiler = GrammarCompiler(tokenizer, len(tokenizer))
    family = Family("marked", (), {"tool_calls": {"open": "<|mark|>", "content": "json"}}, "<|mark|>", (CallShape(listed=True),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_calls, "family_of", lambda tokenizer: family)
        held = strict_reply(tokenizer, read(family), USE, Thought(), None)
    mark = tokenizer.convert_tokens_to_ids("<|mark|>")
    state = compiler.state(held, {2})
    text, bracket = tokenizer("ab b")["input_ids"], tokenizer("[")["input_ids"]
    assert state.allowed([])[[mark, 2, text[0]]].all() and state.allowed(text)[[mark, 2]].all()
    begun = state.allowed([*text, mark])
    assert begun[bracket[-1]] and not begun[[mark, 2, text[0]]].any()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("strict") / "model"
    save(path, "qwen2", torch.bfloat16)
    return path


@pytest.fixture(scope="module")
def both(model: Path) -> Iterator[tuple[LLM, LLM]]:
    with opened(model, resident="none") as drafting, opened(model, method="none") as plain:
        yield drafting, plain


# A mark that a random model writes soon.
FIELD = {"open_pattern": "7", "close": ";", "repeats": True, "content": "json"}
SHORT = Family("short", (), {"tool_calls": FIELD}, "7", (CallShape(close=";"),))
CALL = re.compile(r'7\s*\{\s*"name"\s*:\s*"f"\s*,\s*"arguments"\s*:\s*(.*?)\s*\}\s*;', re.DOTALL)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_calls_of_a_random_model_fit_and_are_those_of_plain_decoding(both: tuple[LLM, LLM], temperature: float) -> None:
    drafting, plain = both
    digit = {"type": "integer", "minimum": 0, "maximum": 99}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {**SCHEMA, "properties": {"a": digit}}}}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_calls, "family_of", lambda tokenizer: SHORT)
        held = strict_reply(TOKENIZER, read(SHORT), ToolUse(tools, strict=frozenset("f")), Thought(), None)
    mark = TOKENIZER("7")["input_ids"][0]
    params: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": 240}
    params |= {"logit_bias": {mark: 6.0}, "ignore_eos": True}
    (free,) = drafting.generate([[5, 99, 5, 12]], SamplingParams(**params))
    assert "7" in free.text and not CALL.search(free.text), "without the grammar it makes no calls"
    (done,) = drafting.generate([[5, 99, 5, 12]], SamplingParams(**params, constraint=held))
    (expected,) = plain.generate([[5, 99, 5, 12]], SamplingParams(**params, constraint=held))
    assert done.token_ids == expected.token_ids and done.stats.accepted > 0 and done.stats.bytes_streamed > 0
    calls = CALL.findall(done.text)
    assert len(calls) > 1 and all(0 <= json.loads(arguments)["a"] <= 99 for arguments in calls), done.text
