"""The arrays of a search on a device have room for what the host gives, and columns do not overlap."""

from hypothesis import given
from hypothesis import strategies as st

from understudy.drafters import device_state as state
from understudy.drafters.pace import EDGES, RANKS, SHARPNESS, Calibration


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 300), st.integers(1, 64))
def test_there_is_room_for_all_that_a_draft_is_given(rows: int, stops: int, nodes: int, widest: int) -> None:
    integers, reals = state.SearchSizes(rows, 640, stops, nodes, widest).given()
    assert not set(integers) & set(reals)
    assert integers["stops"] == (rows, stops) and reals["cost"] == (widest,) and reals["share"] == (nodes + 1,)
    calibration = Calibration()
    for name, numbers in (("hits", calibration.hits), ("trials", calibration.trials), ("belief", calibration.weights)):
        assert reals[name] == (rows, len(numbers))
    assert reals["ranks"] == (rows, len(calibration.ranks)) == (rows, RANKS)
    assert (len(calibration.hits), len(calibration.weights)) == (len(EDGES) + 1, len(SHARPNESS))


def test_columns_are_apart() -> None:
    node = (state.TOKEN, state.PARENT, state.DEPTH, state.SPINE, state.BUCKET, state.FOUND, state.CHILDREN)
    candidate = (state.ROW, state.PLACE, state.FROM, state.WHAT, state.DEEP, state.CHAIN, state.VALID)
    assert sorted(node) == sorted(candidate) == list(range(7)) and state.CHILDREN == 6, "children come last, RANKS of them"
    assert state.CHANCE + 1 == state.THROUGH and state.THROUGH + RANKS == state.KEY
