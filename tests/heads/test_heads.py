"""What every kind of draft head has in common."""

import pytest

from understudy.heads import HEADS, DraftHead, HeadConfig, TargetFacts
from understudy.registry import find


def test_every_kind_is_a_draft_head() -> None:
    assert all(issubclass(find("head", HEADS, kind), DraftHead) for kind in HEADS)


def test_a_head_needs_all_of_its_methods() -> None:
    class WithoutScores(DraftHead):
        def begin(self, hidden, embedded, places):  # type: ignore[no-untyped-def]
            return embedded

        def follow(self, states, embedded, depth, places):  # type: ignore[no-untyped-def]
            return states

    config = HeadConfig("none", TargetFacts(hidden_size=8, vocab_size=16), taps=(-1,))
    with pytest.raises(TypeError, match="scores"):
        WithoutScores(config)  # type: ignore[abstract]
