"""Biases and penalties: as transformers and vLLM define them, and after each node as after the text that ends with it."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from tests.test_engine import Guessing, Slab
from understudy.adjust import Adjustment
from understudy.engine import Choose, Engine
from understudy.params import SamplingParams
from understudy.sampling import choose
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

VOCABULARY = 7
tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)


@st.composite
def adjusting(draw: st.DrawFn) -> SamplingParams:
    """Any mix of biases and penalties, greedy or sampled."""
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.8])),
        seed=draw(st.integers(0, 99)),
        repetition_penalty=draw(st.sampled_from([1.0, 0.6, 1.4, 3.0])),
        presence_penalty=draw(st.sampled_from([0.0, -1.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.4, 0.3])),
        logit_bias=draw(st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, -0.5, 1.5]), max_size=3)),
        min_tokens=draw(st.sampled_from([0, 3, 9])),
        max_new_tokens=draw(st.integers(1, 20)),
    )


def plainly(logits: Sequence[float], params: SamplingParams, prompt: list[int], made: list[int], stops: set[int]) -> list[float]:
    """The definition, one token after another."""
    count = Counter(made)
    found = []
    for token, logit in enumerate(torch.tensor(logits, dtype=torch.float32)):
        value = logit + dict(params.biases).get(token, 0.0)
        if token in prompt or token in made:
            value = value * params.repetition_penalty if value < 0 else value / params.repetition_penalty
        value = value - params.frequency_penalty * count[token] - params.presence_penalty * (count[token] > 0)
        found.append(-torch.inf if token in stops and len(made) < params.min_tokens else float(value))
    return found


def sequence(prompt: list[int], made: list[int], params: SamplingParams, stops: set[int]) -> TokenSequence:
    return TokenSequence(0, [*prompt, *made], params, frozenset(stops), limit=100, prompt_length=len(prompt))


@given(tokens, st.lists(tokens, max_size=3), tokens, adjusting(), st.sets(st.integers(0, 6), max_size=2), st.integers(0, 99))
@settings(max_examples=60)
def test_every_place_is_as_the_text_that_ends_with_it(
    prompt: list[int], rounds: list[list[int]], drafted: list[int], params: SamplingParams, stops: set[int], seed: int
) -> None:
    chance = random.Random(seed)
    text = sequence(prompt, [], params, stops)
    made: list[int] = []
    for new in [[], *rounds]:  # a text that has grown since it was looked at
        made += new
        text.tokens += new
        tree = TokenTree.of(drafted, [-1, *(chance.randrange(i + 1) for i in range(len(drafted) - 1))])
        adjustment = Adjustment.of(text, lambda tree=tree: tree.paths)  # type: ignore[misc]
        logits = torch.randn(len(tree), VOCABULARY, generator=torch.Generator().manual_seed(seed))
        before = logits.clone()
        if adjustment is None:
            assert not params.adjusts
            continue
        scores = torch.cat([adjustment.after(1)(logits[1:], 0), adjustment(logits[:1], 0)]).roll(1, 0)
        assert torch.equal(scores, adjustment(logits, 0)) and torch.equal(before, logits)
        for node, path in enumerate(tree.paths):
            expected = torch.tensor(plainly(logits[node].tolist(), params, prompt, [*made, *path], stops))
            torch.testing.assert_close(scores[node], expected)
            alone = sequence(prompt, [*made, *path], params, stops)
            assert torch.equal(scores[node], Adjustment(alone, [[]])(logits[node : node + 1], 0)[0])


@given(tokens, tokens, st.floats(0.3, 4.0), st.integers(0, 30))
@settings(max_examples=40)
def test_as_transformers_has_them(prompt: list[int], made: list[int], penalty: float, least: int) -> None:
    params = SamplingParams(repetition_penalty=penalty, min_tokens=least)
    logits = torch.randn(1, VOCABULARY)
    ids = torch.tensor([[*prompt, *made]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    expected = MinNewTokensLengthLogitsProcessor(len(prompt), least, [2, 5])(ids, expected)
    assert torch.equal(Adjustment(sequence(prompt, made, params, {2, 5}), [[]])(logits, 0), expected)


def test_the_prompt_counts_for_repetition_alone() -> None:
    logits = torch.ones(1, VOCABULARY)
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        text = sequence([3, 3], [4, 4], SamplingParams(**{name: 2.0}), set())  # type: ignore[arg-type]
        changed = Adjustment(text, [[]])(logits, 0)[0] != 1
        assert changed.nonzero().flatten().tolist() == ([3, 4] if name == "repetition_penalty" else [4])


def test_temperature_comes_after_the_bias() -> None:
    """At temperature 10, a bias of 30 is 3 in log-probability; it would decide alone if it came after."""
    text = sequence([1], [], SamplingParams(temperature=10.0, seed=1, logit_bias={3: 30.0}), set())
    count = 2000
    logits = torch.zeros(count, VOCABULARY)
    adjustment = Adjustment(text, [[]] * count)
    seen = torch.bincount(choose(logits, text.params, torch.arange(count), adjustment), minlength=VOCABULARY)
    expected = torch.tensor([0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0]).softmax(0) * count
    assert bool(((seen - expected).abs() < 5 * expected.sqrt()).all())


def test_a_logit_that_is_no_number_stays_none() -> None:
    text = sequence([1], [], SamplingParams(min_tokens=3), {0})
    for wrong in (torch.nan, torch.inf):
        logits = torch.tensor([[wrong, 1.0, 2.0]])
        assert choose(logits, text.params, torch.arange(1), Adjustment(text, [[]])).tolist() == [-1]


class Noisy(Slab):
    """An exact model with an opinion on every token."""

    def verify(self, nodes: Nodes, wanted: Tensor, choose: Choose) -> tuple[Tensor, None]:
        self.layers[0].write(nodes, nodes.tokens.float()[:, None, None], nodes.tokens.float()[:, None, None])
        logits = torch.zeros(len(wanted), VOCABULARY)
        for place, node in enumerate(wanted.tolist()):
            seen = self.layers[0].keys[int(nodes.rows[node]), 0, nodes.slots_in_order(node), 0]
            chance = random.Random(str(seen.tolist()))
            logits[place] = torch.tensor([chance.gauss(0, 1) for _ in range(VOCABULARY)])
        pieces = [choose(logits[start : start + 5], start) for start in range(0, len(wanted), 5)]
        return torch.cat(pieces) if pieces else wanted, None


def generated(work: Sequence[tuple[list[int], SamplingParams, set[int]]], drafts: int, seed: int) -> list[list[int]]:
    slab = Noisy(len(work))
    engine = Engine(slab.verify, slab, Guessing(seed, drafts))
    rows = [
        engine.admit(TokenSequence(row, list(prompt), params, frozenset(stops)))
        for row, (prompt, params, stops) in enumerate(work)
    ]
    while engine.sequences:
        engine.step()
    return [row.tokens for row in rows]


@given(
    st.lists(st.tuples(tokens, adjusting(), st.sets(st.integers(0, 6), max_size=2)), min_size=1, max_size=4),
    st.integers(0, 10_000),
)
@settings(max_examples=30)
def test_text_is_the_same_whatever_was_drafted_and_whoever_is_beside(
    work: list[tuple[list[int], SamplingParams, set[int]]], seed: int
) -> None:
    alone = [generated([one], 1, seed)[0] for one in work]
    assert generated(work, 20, seed) == alone


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens"])
def test_each_changes_the_text(name: str) -> None:
    value = {"logit_bias": {1: 50.0}, "min_tokens": 20}.get(name, 2.0)
    plain = SamplingParams(max_new_tokens=20)
    other = SamplingParams(max_new_tokens=20, **{name: value})  # type: ignore[arg-type]
    assert generated([([1, 2], plain, {3})], 9, 0) != generated([([1, 2], other, {3})], 9, 0)
