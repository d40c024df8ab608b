"""Budgets of reasoning: the end is forced where they are spent, at any place of a tree, and the text is plain decoding's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer, save
from understudy import LLM, Constraint, ReasoningBudget, SamplingParams
from understudy.errors import UsageError
from understudy.reasoning import ReasoningState, begins
from understudy.token_texts import TokenTexts

TOKENIZER = byte_tokenizer()
DATA = TokenTexts(TOKENIZER).data
PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
# Marks that a random text meets now and then.
OPENED, CLOSED = "a", "bc"


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def state(budget: ReasoningBudget, text: Sequence[int] = (), begun: bool = False) -> ReasoningState:
    found = ReasoningState(budget, ids(budget.closed), DATA, begun)
    found.follow(text)
    return found


@given(st.text("abcd", max_size=14), st.integers(0, 5), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, phases=[Phase.generate])
def test_every_place_is_as_the_text_that_ends_with_it(text: str, tokens: int, begun: bool, seed: int) -> None:
    """Whatever the order of questions, and however the text grew."""
    chance = random.Random(seed)
    budget = ReasoningBudget(tokens, OPENED, CLOSED)
    whole = state(budget, [], begun)
    all_ids = ids(text)
    cuts = sorted(chance.randrange(len(all_ids) + 1) for _ in range(3))
    for cut in cuts:
        whole.follow(all_ids[:cut])
        paths = [all_ids[cut : cut + size] for size in range(len(all_ids) - cut + 1)]
        chance.shuffle(paths)
        for path in paths:
            assert whole.forced(path) == state(budget, [*all_ids[:cut], *path], begun).forced([])


@pytest.mark.parametrize(("text", "tokens", "begun", "forced"), [
    ("", 0, True, "b"), ("b", 0, True, "c"), ("bc", 0, True, None), ("", 0, False, None), ("a", 0, False, "b"),
    ("dd", 2, True, "b"), ("d", 2, True, None), ("ddb", 2, True, "c"), ("ddbc", 2, True, None), ("ddbca", 2, True, "b"),
    ("bcdda", 2, True, None), ("bcddad", 2, True, "b"), ("dbcdda", 2, True, "b"), ("dbcdd", 2, True, None),
    ("ddd", 2, True, "b"), ("ddbd", 2, True, "b"),
])  # fmt: skip
def test_the_end_is_forced_once_the_budget_of_all_reasonings_is_spent(
    text: str, tokens: int, begun: bool, forced: str | None
) -> None:
    found = state(ReasoningBudget(tokens, OPENED, CLOSED), ids(text), begun).forced([])
    assert (None if found is None else DATA(found).decode()) == forced


def test_a_character_is_not_cut_in_two_but_nobody_waits_for_ever() -> None:
    budget = ReasoningBudget(1, OPENED, CLOSED)
    euro = ids("€")
    assert len(euro) == 3
    begun = [state(budget, euro[:size], True).forced([]) for size in (1, 2, 3)]
    assert begun == [None, None, ids("b")[0]]
    lead = [euro[0]] * 8
    waited = [state(budget, lead[:size], True).forced([]) is None for size in range(1, 8)]
    assert waited == [True, True, True, False, False, False, False]


@pytest.mark.parametrize(("prompt", "begun"), [
    ("x", False), ("<think>", True), ("<think>\nx", True), ("<think></think>", False), ("</think><think>", True),
])  # fmt: skip
def test_a_prompt_may_have_begun_it(prompt: str, begun: bool) -> None:
    assert begins(ReasoningBudget(1), prompt.encode()) == begun


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reasoning") / "model"
    save(path, "qwen2", torch.bfloat16)
    return path


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("tokens", [0, 1, 7, 30])
def test_a_spent_budget_ends_the_reasoning_drafted_or_not(tokens: int, temperature: float, drafting: LLM, plain: LLM) -> None:
    budget = ReasoningBudget(tokens, begun=True)
    params = SamplingParams(temperature=temperature, seed=5, max_new_tokens=45, ignore_eos=True, reasoning_budget=budget)
    (expected,) = plain.generate([PROMPT], params)
    (done,) = drafting.generate([PROMPT], params)
    assert done.token_ids == expected.token_ids and done.stats.accepted > 0
    # A character that was begun is ended before.
    assert any(done.token_ids[place : place + 8] == ids("</think>") for place in range(tokens, tokens + 4))
    (free,) = plain.generate([PROMPT], SamplingParams(temperature=temperature, seed=5, max_new_tokens=45, ignore_eos=True))
    assert free.token_ids[:tokens] == done.token_ids[:tokens] and "</think>" not in free.text


BESIDE: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"logprobs": 1},
    {"top_k": 4, "min_p": 0.05},
    {"logit_bias": {ids("a")[0]: 6.0, ids("b")[0]: -100.0}},
    {"constraint": Constraint.regex("[abcd ]{30,60}")},
]


@st.composite
def asked(draw: st.DrawFn) -> SamplingParams:
    chosen = draw(st.sampled_from(BESIDE))
    likely = {"logit_bias": {ids(letter)[0]: 4.0 for letter in "abcd"}}
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.8, 1.3])), seed=draw(st.integers(0, 9)), max_new_tokens=draw(st.integers(1, 40)),
        reasoning_budget=draw(st.builds(ReasoningBudget, st.integers(0, 9), st.just(OPENED), st.just(CLOSED), st.booleans())),
        **{**likely, **chosen},
    )  # fmt: skip


@given(st.lists(asked(), min_size=1, max_size=3))
@settings(max_examples=8, phases=[Phase.generate])
def test_any_mix_in_one_batch_is_as_each_alone(drafting: LLM, plain: LLM, mixed: list[SamplingParams]) -> None:
    for params, done in zip(mixed, drafting.generate([PROMPT] * len(mixed), mixed), strict=True):
        (alone,) = plain.generate([PROMPT], params)
        assert (done.token_ids, done.text, done.logprobs) == (alone.token_ids, alone.text, alone.logprobs)
        assert params.reasoning_budget is not None
        text, tokens = done.token_ids, params.reasoning_budget.tokens
        for place, token in enumerate(text):
            forced = state(params.reasoning_budget, text[:place], bool(params.reasoning_budget.begun)).forced([])
            assert forced in (None, token), (place, tokens, done.text)


def test_a_grammar_has_the_last_word(drafting: LLM) -> None:
    """It does not allow the mark, so the text goes on without an error."""
    params = SamplingParams(
        max_new_tokens=9, constraint=Constraint.regex("[0-9]{9}"), reasoning_budget=ReasoningBudget(2, begun=True)
    )
    assert drafting.generate([PROMPT], params)[0].text.isdigit()


@pytest.mark.parametrize(("make", "says"), [
    (lambda: ReasoningBudget(-1), "reasoning_budget must be a number of tokens, 0 or more, got -1"),
    (lambda: ReasoningBudget(True), "reasoning_budget must be a number of tokens"),
    (lambda: ReasoningBudget(1, "x", "x", name="field"), "field needs two marks that differ"),
    (lambda: ReasoningBudget(1, closed=""), "reasoning_budget needs two marks"),
    (lambda: SamplingParams(reasoning_budget=3), "reasoning_budget must be a ReasoningBudget"),  # type: ignore[arg-type]
])  # fmt: skip
def test_values_without_a_sense_are_one_line(make: Any, says: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_a_mark_that_no_tokens_write_is_refused(drafting: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting.maker.texts, "_known", dict.fromkeys(ids("</think>"), b"?"))
    with pytest.raises(UsageError, match="reasoning_budget cannot be used: this model's tokenizer has no tokens for '</think>'"):
        drafting.generate([PROMPT], SamplingParams(reasoning_budget=ReasoningBudget(3)))
