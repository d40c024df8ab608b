"""When to stop: the marginal rule and what it learns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.drafters.pace import RANKS, Calibration, Pace


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


def test_a_node_is_told_as_a_share_of_a_level() -> None:
    assert Pace(levels={1: 0.1, 2: 0.12}).node_share == pytest.approx(0.2) and Pace().node_share == 0.0


def test_the_rate_is_tokens_over_seconds() -> None:
    pace = Pace()
    for _ in range(200):
        pace.record_round(20, 4.0)
    assert pace.rate == pytest.approx(5.0)


def test_chances_move_to_what_is_seen() -> None:
    calibration = Calibration()
    scores = [2.0, 1.0, 0.5]
    first = calibration.chances(scores)
    assert 0.5 < first[0] < 1 and sum(first) <= 1 and first == sorted(first, reverse=True)
    for turn in range(500):
        calibration.learn(scores, (0, 1, 2)[turn % 3])
    even = calibration.chances(scores)
    assert even[0] < 0.6 and even[2] > 0.15, "where any child may be right, chances fall slowly with the gap"
    for _ in range(500):
        calibration.learn(scores, 0)
    assert calibration.chances(scores)[0] > 0.95, "and fast where the best always is"


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=RANKS), st.integers(0, 40))
def test_chances_fall_with_the_gap_and_leave_some_for_tokens_that_are_not_there(scores: list[float], misses: int) -> None:
    scores.sort(reverse=True)
    calibration = Calibration()
    for _ in range(misses):
        calibration.learn(scores, None)
    chances = calibration.chances(scores)
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(calibration.inside) and calibration.inside < 1
    assert misses == 0 or calibration.inside < Calibration().inside
    assert calibration.weights == Calibration().weights, "a miss says nothing of sharpness"


def test_a_bonus_moves_to_where_what_is_foretold_comes_true() -> None:
    calibration = Calibration()
    for _ in range(100):
        foretold = calibration.chances([0.5, calibration.bonus[3]])[1]
        calibration.learn_bonus(3, foretold, right=False)
    assert calibration.bonus[3] == 0.0 and calibration.bonus[2] == Calibration().bonus[2], "each length has its own"
    for _ in range(1000):
        calibration.learn_bonus(3, 0.1, right=True)
    assert 1 < calibration.bonus[3] < 10


def test_a_level_is_not_dearer_than_a_wider_one_and_recovers_from_a_disturbance() -> None:
    pace = Pace(levels={1: 0.4, 2: 0.1, 4: 0.2})
    assert pace.cost(1) == 0.1
    pace.record_level(1, 0.09)
    assert pace.levels[1] == pytest.approx(0.09), "nothing makes a level shorter than it is"
    pace.record_level(1, 9.0)
    assert pace.levels[1] < 0.2


@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=40), st.lists(st.tuples(st.floats(0.05, 1), st.integers(1, 9)), max_size=8),
    st.integers(1, 300),
)  # fmt: skip
def test_a_level_leaves_room_for_what_is_likelier_later(
    chances: list[float], tips: list[tuple[float, int]], room: int
) -> None:
    pace = Pace(levels={1: 0.01}, rate=10.0)
    chances.sort(reverse=True)
    count = pace.share(chances, tips, room)
    assert 0 <= count <= min(len(chances), room) and count <= pace.share(chances, tips, room + 1)

    def wanted(number: int) -> int:
        return number + sum(pace.levels_left(*tip, chances[number - 1]) for tip in tips)

    assert count == 0 or wanted(count) <= room
    assert count == min(len(chances), room) or wanted(count + 1) > room, "there was room for one more"


def test_a_sure_chain_keeps_its_nodes_and_no_more() -> None:
    pace = Pace(levels={1: 0.01}, rate=10.0)
    chances = [0.9] * 4 + [0.3] * 20
    assert pace.share(chances, [(0.9, 1)], 100) == 24, "levels of it that have a chance above 0.3 fit beside all of them"
    assert pace.share(chances, [(0.9, 1)], 20) == 10, "ten more levels of it are likelier than the rest"
    assert pace.share(chances, [(0.9, 1)] * 4, 20) == 4, "and those of four texts fill the pass"


def test_other_texts_scale_the_rate_that_was_measured() -> None:
    pace = Pace()
    pace.scale(8.0, 1.0)
    assert pace.rate == 0.0, "nothing was measured yet"
    pace.record_round(10, 2.0)
    pace.scale(8.0, 2.0)
    assert pace.rate == pytest.approx(20.0)
    pace.record_round(80, 4.0)
    assert pace.rate == pytest.approx(20.0), "what is measured then agrees"
