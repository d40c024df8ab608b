"""Chains are judged as passes would accept them, at all places of a text at once."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.errors import UsageError
from understudy.heads import DraftHead, HeadConfig, Places, Score, TargetFacts
from understudy.training.chains import PieceBatch
from understudy.training.judge import judge, standard_error, written

WORDS = 7


class Counting(DraftHead):
    """Says that each token is followed by the next number: its states are the tokens themselves."""

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        return embedded

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        return embedded

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states

    def scores(self, states: Tensor, depth: int, score: Score) -> Tensor:
        return torch.nn.functional.one_hot((states[..., 0].long() + 1) % WORDS, WORDS).float()


def batches(texts: list[list[int]], prompts: list[int]) -> Any:
    """What `Batches` gives of texts, one at a time, without hidden states."""
    pieces = written(texts, prompts)

    def read(group: list[int]) -> PieceBatch:
        tokens = pieces.tokens[pieces.part(group[0])][None]
        nothing = torch.zeros(1, tokens.shape[1], 1, 1)
        return PieceBatch(tokens, pieces.counted[pieces.part(group[0])][None], nothing, nothing[:, :, 0])

    return SimpleNamespace(pieces=pieces, measured=lambda: [[i] for i in range(len(texts))], read=read)


def judged(texts: list[list[int]], prompts: list[int], levels: int, heads: int = 0) -> Any:
    head = Counting(HeadConfig("counting", TargetFacts(1, WORDS), (-1,), heads=heads))
    target: Any = SimpleNamespace(embed=lambda tokens: tokens[..., None].float(), score=None)
    return judge(head, target, batches(texts, prompts), levels)


TOKENS = st.lists(st.integers(0, WORDS - 1), min_size=12, max_size=20)


@settings(max_examples=30)
@given(st.lists(TOKENS, min_size=1, max_size=3), st.integers(2, 4), st.integers(1, 4))
def test_the_worth_is_what_walking_from_every_place_finds(texts: list[list[int]], prompt: int, levels: int) -> None:
    runs = []
    for text in texts:
        # The root of a draft is the last token; where the first of a chain is the target's, and all of it lies in the text.
        for root in range(max(prompt - 1, 1), len(text) - levels):
            run = 0
            while run < levels and text[root + 1 + run] == (text[root] + 1 + run) % WORDS:
                run += 1
            runs.append(run)
    found = judged(texts, [prompt] * len(texts), levels)
    assert found.judged == len(runs) and found.tokens_per_pass == pytest.approx(1 + sum(runs) / len(runs))
    reached = [sum(run >= depth for run in runs) for depth in range(levels + 1)]
    shares = [after / before if before else 0 for before, after in pairwise(reached)]
    assert found.positions == pytest.approx(shares)
    assert sum(right for right, _ in found.by_text) == sum(runs) and sum(chains for _, chains in found.by_text) == len(runs)


def test_a_head_of_few_heads_drafts_as_deep_as_it_has_some() -> None:
    text = [place % WORDS for place in range(20)]
    assert judged([text], [4], 5).tokens_per_pass == 6 and judged([text], [4], 5, heads=2).tokens_per_pass == 3


def test_texts_that_are_too_short_are_refused() -> None:
    with pytest.raises(UsageError, match="No text has 6 tokens after its beginning"):
        judged([[0, 1, 2, 3, 4, 5, 6]], [3], 5)


def test_a_standard_error_is_that_of_means_over_texts() -> None:
    by_text = [(5, 10), (9, 10), (1, 10)]
    # Equally many places of each text: the error of the mean of 0.5, 0.9 and 0.1.
    assert standard_error(by_text) == pytest.approx(0.4 / 3**0.5)
    better = [(right + 1, places) for right, places in by_text]
    assert standard_error(better, by_text) == pytest.approx(0) and standard_error(by_text[:1]) is None
