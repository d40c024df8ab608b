"""What kernels of a tree search give is what the plain rules give, to the last bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drafters.plain_search import PlainCalibration, plain_match
from understudy.drafters.pace import RANKS, SHARPNESS, STEEPEST, Calibration
from understudy.drafters.suggest import LONGEST, PLACES
from understudy.kernels.choosing import chances, match

SCORES = st.lists(st.floats(-1e6, 1e6, width=32), max_size=RANKS)


@given(st.lists(st.tuples(SCORES, st.integers(0, RANKS)), min_size=1, max_size=8), SCORES)
def test_chances_are_those_of_the_plain_rule(seen: list[tuple[list[float], int]], scores: list[float]) -> None:
    plain, quick = PlainCalibration(), Calibration()
    for own, rank in seen:
        own.sort(reverse=True)
        for calibration in (plain, quick):
            if own:
                calibration.learn(own, rank if rank < len(own) else None)
    scores.sort(reverse=True)
    assert quick.chances(scores) == plain.chances(scores) and quick.weights == plain.weights


def test_chances_of_equal_scores_are_equal_and_no_exponent_is_too_steep() -> None:
    weights = np.full(len(SHARPNESS), 1 / len(SHARPNESS))
    assert chances([3.0, 3.0], np.array(SHARPNESS), weights, 0.9, STEEPEST) == pytest.approx([0.45, 0.45])
    far = chances([1e9, 0.0], np.array(SHARPNESS), weights, 1.0, STEEPEST)
    assert far[1] == pytest.approx(np.exp(-STEEPEST)) and chances([], np.array(SHARPNESS), weights, 1.0, STEEPEST) == []


@given(st.lists(st.integers(0, 3), max_size=200), st.lists(st.integers(0, 3), max_size=9), st.integers(1, LONGEST))
def test_a_text_in_two_parts_repeats_itself_where_the_whole_does(text: list[int], more: list[int], longest: int) -> None:
    assert match(np.array(text, dtype=np.int64), more, longest, PLACES) == plain_match([*text, *more], longest)


def test_no_more_places_are_looked_at_than_asked_for() -> None:
    text = np.array([1, 2, 9, *[7, 2] * 10, 1, 2])
    assert match(text, [], 8, 64) == (2, 2) and match(text, [], 8, 10) == (1, 23), "the place that fits best is the oldest"
