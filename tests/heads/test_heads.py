"""What every kind of draft head has in common."""

import pytest
import torch
from torch import Tensor

from understudy.heads import HEADS, DraftHead, HeadConfig, Places, TargetFacts
from understudy.registry import find


def test_every_kind_is_a_draft_head() -> None:
    assert all(issubclass(find("head", HEADS, kind), DraftHead) for kind in HEADS)


class Sum(DraftHead):
    """Its state of a token is the sum of what it is given."""

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        return hidden.sum(2) + embedded

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        return states + embedded

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states


def test_a_head_needs_all_of_its_methods() -> None:
    class WithoutFeatures(DraftHead):
        begin = Sum.begin
        follow = Sum.follow

    config = HeadConfig("none", TargetFacts(hidden_size=8, vocab_size=16), taps=(-1,))
    with pytest.raises(TypeError, match="features"):
        WithoutFeatures(config)  # type: ignore[abstract]


def test_logits_are_of_the_targets_output_head_unless_the_vocabulary_is_pruned() -> None:
    facts = TargetFacts(hidden_size=8, vocab_size=16)
    target = torch.nn.Linear(8, 16, bias=False)
    states = torch.randn(1, 3, 8)
    whole = Sum(HeadConfig("sum", facts, taps=(-1,)))
    assert whole.token_map is None and torch.equal(whole.scores(states, 0, target), target(states))
    pruned = Sum(HeadConfig("sum", facts, taps=(-1,), draft_vocab_size=4))
    assert pruned.output is not None and torch.equal(pruned.scores(states, 0, target), pruned.output(states))
    assert pruned.token_map is not None and set(pruned.state_dict()) == {"token_map", "output.weight"}
