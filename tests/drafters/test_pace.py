"""When to stop: the marginal rule and what it learns."""

import pytest

from understudy.drafters.pace import EDGES, Calibration, Pace, bucket_of


def test_no_level_is_run_that_does_not_pay() -> None:
    pace = Pace(levels={1: 0.1, 4: 0.2, 8: 0.4}, rate=5.0)
    assert pace.width([0.9], 1, 16, free=False) == 1
    assert pace.width([0.4], 1, 16, free=False) == 0, "0.4 tokens for 0.1 s is slower than 5 tokens a second"
    assert pace.width([0.4], 1, 16, free=True) == 1, "time that the link needs anyway costs nothing"
    assert pace.width([0.01], 1, 16, free=True) == 0


def test_a_wide_level_is_run_where_rows_are_cheap() -> None:
    chances = [0.5, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]
    assert Pace(levels={1: 0.01, 8: 0.0101}, rate=5.0).width(chances, 1, 16, free=False) == 8
    assert Pace(levels={1: 0.01, 8: 2.0}, rate=5.0).width(chances, 1, 16, free=False) == 1


def test_costs_lie_on_the_line_between_measured_widths() -> None:
    pace = Pace(levels={1: 0.1, 3: 0.3})
    assert pace.cost(2) == pytest.approx(0.2) and pace.cost(1) == 0.1 and pace.cost(6) > 0.3


def test_the_rate_is_tokens_over_seconds() -> None:
    pace = Pace()
    for _ in range(200):
        pace.record_round(20, 4.0)
    assert pace.rate == pytest.approx(5.0)


def test_chances_move_to_what_is_seen() -> None:
    calibration = Calibration()
    first = calibration.chances([2.0, 1.0, 0.5])
    assert 0.5 < first[0] < 1 and sum(first) <= 1 and first == sorted(first, reverse=True)
    for _ in range(500):
        calibration.learn(bucket_of(1.0), 1)
    second = calibration.chances([2.0, 1.0, 0.5])
    assert second[0] < 0.1 and second[1] > 0.8
    assert calibration.chances([9.0, 1.0])[0] > 0.9, "another margin has its own record"


def test_buckets() -> None:
    assert bucket_of(0) == 0 and bucket_of(float("inf")) == len(EDGES)


def test_few_misses_teach_every_margin() -> None:
    calibration = Calibration()
    before = calibration.chances([4.0, 1.0])[0]
    for _ in range(6):
        calibration.learn(bucket_of(1.0), None)
    assert calibration.chances([4.0, 1.0])[0] < before, "misses at one margin make others less sure"
    for _ in range(60):
        calibration.learn(bucket_of(2.0), 0)
    assert calibration.chances([4.0, 1.0])[0] > 0.9, "and what is seen again and again is believed again"


def test_guesses_that_rest_on_guesses_are_trusted_as_far_as_they_came_true() -> None:
    calibration = Calibration()
    assert calibration.trust == 1.0
    for _ in range(20):
        calibration.compare(accepted=1, foretold=8)
    assert calibration.trust == pytest.approx(1 / 8, rel=0.3)
    for _ in range(40):
        calibration.compare(accepted=3, foretold=2)
    assert calibration.trust == 1.0, "never more than was foretold"


def test_a_level_is_not_dearer_than_a_wider_one_and_recovers_from_a_disturbance() -> None:
    pace = Pace(levels={1: 0.4, 2: 0.1, 4: 0.2})
    assert pace.cost(1) == 0.1
    pace.record_level(1, 0.09)
    assert pace.levels[1] == pytest.approx(0.09), "nothing makes a level shorter than it is"
    pace.record_level(1, 9.0)
    assert pace.levels[1] < 0.2
