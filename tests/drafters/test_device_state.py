"""The arrays of a search on a device have room for what the host gives, and columns do not overlap."""

from hypothesis import given
from hypothesis import strategies as st

from understudy.drafters import device_state as state
from understudy.drafters.pace import RANKS, SHARPNESS, Calibration
from understudy.kernels import search_columns as columns


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 300), st.integers(1, 64))
def test_there_is_room_for_all_that_a_draft_is_given(rows: int, stops: int, nodes: int, widest: int) -> None:
    integers, reals = state.SearchSizes(rows, 640, stops, nodes, widest).given()
    assert not set(integers) & set(reals)
    assert integers["stops"] == (rows, stops) and reals["cost"] == (widest,) and reals["share"] == (nodes + 1,)
    assert reals["belief"] == (rows, len(Calibration().weights)) == (rows, len(SHARPNESS))
    assert reals["inside"] == (rows,)


def test_columns_are_apart() -> None:
    node = (columns.TOKEN, columns.PARENT, columns.DEPTH, columns.SPINE, columns.FOUND, columns.CHILDREN)
    candidate = (columns.ROW, columns.PLACE, columns.FROM, columns.WHAT, columns.DEEP, columns.CHAIN, columns.VALID, columns.BECAME)
    assert sorted(node) == list(range(6)) and columns.CHILDREN == 5, "children come last, RANKS of them"
    assert sorted(candidate) == list(range(8)) and columns.BECAME == 7, "what only a level has comes last"
    assert columns.CHANCE + 1 == columns.THROUGH and columns.THROUGH + RANKS == state.KEY
    assert state.KEY + RANKS == state.SCORES and state.SCORES + RANKS == state.COLUMNS
