"""Fits find the coefficients that made the numbers, and say what they are worth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import UnderstudyError
from understudy.scaling.fits import STUDENT, least_squares, log_line, student

NUMBERS = st.floats(-100, 100)


@given(NUMBERS, NUMBERS, st.lists(st.integers(1, 10**9), min_size=3, max_size=8, unique=True))
def test_a_line_in_the_logarithm_gives_its_own_coefficients(slope: float, constant: float, places: list[int]) -> None:
    fit = log_line("T", places, [slope * math.log(place) + constant for place in places])
    size = abs(slope) + abs(constant) + 1
    assert fit.coefficients == pytest.approx((slope, constant), abs=1e-4 * size)
    assert fit.at(math.log(7)) == pytest.approx(slope * math.log(7) + constant, abs=1e-4 * size)
    assert fit.points == len(places) and fit.margins is not None and max(fit.margins) < 0.01 * size


def test_confidence_and_share_of_the_variance_are_those_of_a_book() -> None:
    """The 95% intervals and R2 of a line through five points, worked out by hand."""
    fit = least_squares(("x", "1"), [(x, 1) for x in (1, 2, 3, 4, 5)], [2, 4, 5, 4, 5])
    assert fit.coefficients == pytest.approx((0.6, 2.2))
    # Residuals -0.8, 0.6, 1, -0.6, -0.2: squares 2.4, of 6 in all; a variance of 0.8; standard errors 0.2828 and 0.9381.
    assert fit.r2 == pytest.approx(0.6)
    assert fit.margins == pytest.approx((3.182 * 0.08**0.5, 3.182 * 0.88**0.5))


@settings(max_examples=10)
@given(st.integers(0, 2**20))
def test_the_truth_lies_inside_the_interval_nearly_always(seed: int) -> None:
    """Of 200 fits to noisy points some 95% have the true slope in their interval."""
    noise = np.random.default_rng(seed)
    found = 0
    for _ in range(200):
        values = [0.08 * math.log(t) + 5 + noise.normal(0, 0.05) for t in (1, 2, 5, 10, 50)]
        fit = log_line("T", (1, 2, 5, 10, 50), values)
        assert fit.margins is not None
        found += abs(fit.coefficients[0] - 0.08) <= fit.margins[0]
    assert 170 <= found <= 200


def test_quantiles_of_student_fall_to_the_normal_ones() -> None:
    falling = [student(freedom) for freedom in range(1, 60)]
    assert falling == sorted(falling, reverse=True)
    assert student(1) == 12.706 and student(30) == STUDENT[-1]
    assert student(40) == pytest.approx(2.021, abs=6e-4) and student(10**6) == pytest.approx(1.95996, abs=1e-4)


def test_two_points_have_a_line_and_no_interval() -> None:
    fit = log_line("D", [1, math.e], [3.0, 5.0])
    assert fit.coefficients == pytest.approx((2, 3)) and fit.margins is None


def test_equal_values_have_no_variance_to_explain() -> None:
    fit = log_line("D", [1, 2, 4], [3.0, 3.0, 3.0])
    assert fit.r2 is None and fit.coefficients == pytest.approx((0, 3), abs=1e-9)


@pytest.mark.parametrize(
    ("places", "values", "said"),
    [
        ([], [], "at least 2 points"),
        ([4], [1.0], "got 1 point."),
        ([4, 4, 4], [1.0, 2.0, 3.0], "points that differ"),
        ([0, 1], [1.0, 2.0], "positive T, got 0"),
        ([1, 2], [1.0, math.nan], "infinite or undefined"),
    ],
)
def test_points_that_decide_nothing_are_refused_in_one_line(places: list[float], values: list[float], said: str) -> None:
    with pytest.raises(UnderstudyError, match=said):
        log_line("T", places, values)
