"""Prompts in every form a caller may have them."""

from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.params import SamplingParams
from understudy.prompts import paired, several, token_ids

IDS = st.lists(st.integers(0, 500), min_size=1, max_size=9)


@given(st.lists(st.one_of(st.text(max_size=5), IDS), min_size=1, max_size=5))
def test_many_prompts_stay_what_they_are(prompts: list[Any]) -> None:
    assert several(prompts) == prompts
    assert [prompt for prompt, _ in paired(tuple(prompts), None)] == prompts


@given(st.one_of(st.text(max_size=5), IDS))
def test_one_prompt_is_a_list_of_one(prompt: Any) -> None:
    assert several(prompt) == [prompt]
    assert paired(prompt, SamplingParams(top_k=3)) == [(prompt, SamplingParams(top_k=3))]


def test_arrays_are_the_lists_they_hold() -> None:
    table = numpy.array([[1, 2], [3, 4]])
    assert several(table) == [[1, 2], [3, 4]] and several(table[0]) == [[1, 2]]
    assert token_ids(table[1]) == [3, 4] and all(type(token) is int for token in token_ids(table[1]))


@pytest.mark.parametrize("nothing", [[], (), None, 5, b"bytes", {}])
def test_nothing_is_no_prompt(nothing: Any) -> None:
    with pytest.raises(UsageError, match="no prompt"):
        several(nothing)


@pytest.mark.parametrize("wrong", [[1.5], ["a"], [None], 7, b"ab"])
def test_token_ids_are_whole_numbers(wrong: Any) -> None:
    with pytest.raises(UsageError, match="list of token ids"):
        token_ids(wrong)
