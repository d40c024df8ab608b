"""A level's width is the next power of two, and a level never outgrows what is read once unless it is forced to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.plan.widths import GUESSED, WIDEST, of_group, padded, widest


@given(st.integers(1, 4096))
def test_a_level_is_padded_to_the_next_power_of_two(nodes: int) -> None:
    width = padded(nodes)
    assert width.bit_count() == 1 and width // 2 < nodes <= width


@pytest.mark.parametrize(
    ("level_width", "forced", "rows", "expected"),
    [
        (0, False, 8, 0),
        (6, False, 1, GUESSED),
        (6, False, 8, WIDEST),
        (16, False, 8, WIDEST),
        (16, True, 8, 128),
        (1, False, 100, 128),
    ],
)
def test_the_widest_level(level_width: int, forced: bool, rows: int, expected: int) -> None:
    assert widest(level_width, forced, rows) == expected


@given(st.integers(1, 40), st.booleans(), st.integers(2, 70))
def test_a_group_of_half_the_texts_has_room_for_a_level_of_each(level_width: int, forced: bool, rows: int) -> None:
    together = widest(level_width, forced, rows)
    some, width = of_group(together, rows)
    assert 2 * some in (rows, rows + 1) and some <= width <= max(together, padded(some)) and padded(width) == width
    assert not forced or width >= some * level_width


def test_where_nothing_is_drafted_a_group_has_no_level() -> None:
    assert of_group(0, 5) == (3, 0)
