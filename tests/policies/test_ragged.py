"""Who comes first is served first, whoever there is a row for takes part, and nobody is passed over."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from understudy.policies import POLICIES
from understudy.policies.ragged import Ragged
from understudy.registry import build


@given(running=st.integers(0, 6), waiting=st.integers(0, 6), free=st.integers(0, 6))
def test_free_rows_go_to_those_that_came_first_and_everybody_runs(running: int, waiting: int, free: int) -> None:
    requests: list[Any] = [object() for _ in range(running + waiting)]
    selection = Ragged().select(tuple(requests[:running]), tuple(requests[running:]), free)
    admitted = min(waiting, free)
    assert list(selection.admit) == requests[running : running + admitted]
    assert list(selection.run) == requests[: running + admitted]


def test_it_is_found_by_its_name() -> None:
    assert isinstance(build("policy", POLICIES, "ragged"), Ragged)
