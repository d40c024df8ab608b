"""Constrained texts end to end: the same with drafting and without, in any batch, and every text that ends by itself fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.schemas import constraints, fits
from tests.tiny import opened, save
from understudy import LLM, Completion, Constraint, SamplingParams
from understudy.devices import DEVICES
from understudy.errors import GrammarError, UsageError

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"type": "string", "maxLength": 12}, "l": {"type": "array", "maxItems": 3}},
    "required": ["n", "s"],
    "additionalProperties": False,
}
EACH = {
    "schema": Constraint.json_schema(SCHEMA),
    "object": Constraint.json_object(),
    "regex": Constraint.regex("[a-f]{4,30}(;[0-9]+)*[.]"),
    "grammar": Constraint.grammar('root ::= "(" root ")" | "[" root "]" | [a-z]{1,4}'),
    "choice": Constraint.choice(["yes", "no", "nobody knows"]),
}
# Others that must not lose their meaning beside a grammar.
BESIDE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "logprobs": {"logprobs": 2},
    "min_tokens": {"min_tokens": 9},
    "stop": {"stop": ("7", "aa")},
    "biases": {"logit_bias": {17: 3.0, 90: -100.0}},
    "ignore_eos": {"ignore_eos": True},
    "filters": {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("constrained") / "model"
    save(path, "qwen2", torch.bfloat16)
    return path


def said(done: Completion) -> tuple[Any, ...]:
    return done.token_ids, done.text, done.finish_reason, done.logprobs


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", EACH)
def test_each_kind_gives_plain_decodings_text_and_drafts_are_accepted(
    name: str, temperature: float, drafting: LLM, plain: LLM
) -> None:
    params = SamplingParams(temperature=temperature, seed=5, max_new_tokens=60, constraint=EACH[name])
    (expected,) = plain.generate([PROMPT], params)
    (done,) = drafting.generate([PROMPT], params)
    assert said(done) == said(expected)
    assert done.stats.bytes_streamed > 0 and (name == "choice" or done.stats.accepted > done.stats.rounds / 2)
    if done.finish_reason == "stop":
        assert fits(EACH[name], done.text) or name == "grammar"
    else:
        assert len(done.token_ids) == 60


@st.composite
def mixed(draw: st.DrawFn) -> tuple[list[int], SamplingParams]:
    """A prompt with anything that may be asked of its text, a constraint among it more often than not."""
    prompt = draw(st.lists(st.integers(1, 255), min_size=1, max_size=8))
    chosen = {**BESIDE[draw(st.sampled_from(list(BESIDE)))], **BESIDE[draw(st.sampled_from(list(BESIDE)))]}
    constraint = draw(st.one_of(st.none(), constraints(), constraints(), constraints()))
    return prompt, SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.0, 0.7, 1.3])),
        seed=draw(st.integers(0, 9)),
        max_new_tokens=draw(st.integers(1, 40)),
        constraint=constraint,
        **chosen,
    )


@given(st.lists(mixed(), min_size=1, max_size=4))
@settings(max_examples=12, deadline=None, phases=[Phase.generate])
def test_any_mix_in_one_batch_is_as_each_alone(drafting: LLM, plain: LLM, asked: list[tuple[list[int], SamplingParams]]) -> None:
    done = drafting.generate([prompt for prompt, _ in asked], [params for _, params in asked])
    for (prompt, params), completion in zip(asked, done, strict=True):
        assert said(completion) == said(plain.generate([prompt], params)[0])
        if params.constraint is not None and completion.finish_reason == "stop" and not params.stop:
            assert fits(params.constraint, completion.text), (params.constraint, completion.text)


@pytest.fixture(scope="module")
def chain(model: Path) -> Iterator[LLM]:
    """Chains that are copied from the text, and know nothing of grammars."""
    with opened(model, method="ngram", rows=2) as llm:
        yield llm


def test_drafts_that_a_grammar_always_refuses_change_nothing(chain: LLM, plain: LLM) -> None:
    prompt = [*PROMPT] * 4
    for constraint in (Constraint.regex("[0-9]{30}"), Constraint.json_schema(SCHEMA)):
        params = SamplingParams(max_new_tokens=40, constraint=constraint)
        (done,) = chain.generate([prompt], params)
        assert said(done) == said(plain.generate([prompt], params)[0])
    assert done.stats.drafted > done.stats.accepted


def test_a_text_ends_where_its_grammar_does_and_not_before(drafting: LLM) -> None:
    """Whatever ends texts otherwise: too few tokens, and a model that may not end them."""
    constraint = Constraint.regex("[a-z]{3}")
    for given_beside in ({}, {"min_tokens": 20}, {"ignore_eos": True}):
        (done,) = drafting.generate([PROMPT], SamplingParams(max_new_tokens=30, constraint=constraint, **given_beside))  # type: ignore[arg-type]
        assert len(done.text) == 3 and len(done.token_ids) == 3 and done.finish_reason == "stop"
    (cut,) = drafting.generate([PROMPT], SamplingParams(max_new_tokens=2, constraint=constraint))
    assert cut.finish_reason == "length" and len(cut.text) == 2
    (exact,) = drafting.generate([PROMPT], SamplingParams(max_new_tokens=3, constraint=constraint))
    assert exact.finish_reason == "stop"


def test_an_end_mark_is_allowed_where_the_text_is_whole_alone(drafting: LLM, plain: LLM) -> None:
    """Token 0 ends a text of this model, and reads "!"."""
    for pattern, text in (("!{2}[a-z]{2}!*", None), ("[a-z]{2}[0-9]*", "")):
        params = SamplingParams(max_new_tokens=9, logit_bias={0: 100.0}, constraint=Constraint.regex(pattern))
        for llm in (drafting, plain):
            if text is None:
                with pytest.raises(GrammarError, match="no token of this model may follow"):
                    llm.generate([PROMPT], params)
            else:
                (done,) = llm.generate([PROMPT], params)
                assert len(done.token_ids) == 3 and done.token_ids[-1] == 0 and done.finish_reason == "stop"
    # The others of a batch go on.
    asked = [SamplingParams(max_new_tokens=4, constraint=Constraint.regex("[a-z]!!")), SamplingParams(max_new_tokens=4)]
    with pytest.raises(GrammarError):
        drafting.generate([PROMPT, PROMPT], asked)
    assert drafting.generate([PROMPT], asked[1])[0].token_ids == plain.generate([PROMPT], asked[1])[0].token_ids


def test_log_probabilities_are_those_of_the_model_as_it_is(drafting: LLM) -> None:
    (done,) = drafting.generate([PROMPT], SamplingParams(max_new_tokens=8, logprobs=1, constraint=EACH["regex"]))
    assert done.logprobs is not None
    assert any(found.top[0][0] != found.token for found in done.logprobs), "likelier tokens were not allowed"


def test_what_cannot_be_compiled_is_one_line_before_anything_runs(drafting: LLM) -> None:
    good = SamplingParams(max_new_tokens=2)
    for constraint in (Constraint.regex("("), Constraint.json_schema({"type": "strin"})):
        with pytest.raises(UsageError, match=r"^prompts\[1\]: constraint cannot be used: ") as error:
            drafting.generate([PROMPT, PROMPT], [good, SamplingParams(constraint=constraint)])
        assert "\n" not in str(error.value)


def test_a_device_that_drafts_without_masks_gives_the_same_text(
    tmp_path: Path, plain: LLM, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its levels run where no grammar is; what they guess and the grammar refuses is never accepted."""
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:without_triton")
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    asked = [SamplingParams(max_new_tokens=9, temperature=t, seed=2, constraint=EACH["grammar"]) for t in (0.0, 0.9)]
    with opened(model, device="fake", codec="raw", rows=2) as llm:
        for params, done in zip(asked, llm.generate([PROMPT] * 2, asked), strict=True):
            assert said(done) == said(plain.generate([PROMPT], params)[0])
            assert done.stats.drafted > 0
