"""Prompt lookup: what followed the same tokens before is copied, and never more than is left to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.drafters import spec_of
from understudy.drafters.ngram import NGram, continuation
from understudy.errors import UsageError
from understudy.sequence import TokenSequence


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_a_chain_stands_in_the_text_after_the_same_token(text: list[int], longest: int, length: int, limit: int) -> None:
    sequence = TokenSequence(0, list(text), limit=limit, prompt_length=len(text))
    (tree,) = NGram(longest, length).draft([sequence])
    chain = tree.tokens.tolist()
    assert tree.is_chain and chain[0] == text[-1] and len(chain) <= min(1 + length, max(limit, 1))
    places = [text[i : i + len(chain)] for i in range(len(text) - 1)]
    assert len(chain) == 1 or chain in places
    assert (len(chain) > 1) == (text[-1] in text[:-1] and limit > 1)


def test_the_longer_match_is_preferred_to_the_later_one() -> None:
    assert continuation([1, 2, 9, 3, 2, 8, 1, 2], 4, 2) == [9, 3]
    assert continuation([1, 2, 9, 3, 2, 8, 1, 2], 1, 2) == [8, 1]


def test_its_spec_says_how_large_its_trees_are_and_that_nothing_is_held() -> None:
    spec = spec_of("ngram:match=2,length=5")
    assert (spec.max_nodes, spec.level_width, spec.holds_substitute, spec.second_model) == (6, 0, False, None)
    with pytest.raises(UsageError, match="ngram needs match and length of 1 or more, got match=0, length=15"):
        spec_of("ngram:match=0")
