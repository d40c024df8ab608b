"""Suggestions from the text: the draft says the same as without them, in fewer levels; what it would not have said is dropped."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafters.world import World, run
from understudy.drafters.suggest import LONGEST, TextSuggester, match


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=3),
    st.integers(1, 50),
    st.integers(1, 6),
    st.integers(1, 40),
    st.frozensets(st.integers(0, 6), max_size=1),
)
def test_guesses_change_no_token_and_no_node(
    prompts: list[list[int]], count: int, period: int, misses: int, stop: frozenset[int]
) -> None:
    run(World(len(prompts), period, misses, TextSuggester()), prompts, count, stop)


@pytest.mark.parametrize("rows", [1, 2])
def test_guesses_save_levels(rows: int) -> None:
    worlds = [World(rows, 4, 30, suggester) for suggester in (TextSuggester(), None)]
    for world in worlds:
        run(world, [[1, 2, 3], [4]][:rows], 120)
    guessed, plain = worlds
    assert guessed.levels < (0.6 if rows == 1 else 0.7) * plain.levels and guessed.passes <= 1.2 * plain.passes
    assert isinstance(guessed.suggester, TextSuggester) and sum(guessed.suggester.agreed) > 20


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, LONGEST))
def test_the_longest_and_latest_match_is_found(text: list[int], longest: int) -> None:
    places = [
        (size, end)
        for size in range(1, longest + 1)
        for end in range(size, len(text))
        if text[end - size : end] == text[len(text) - size :]
    ]
    assert match(text, longest) == max(places, default=(0, 0))
