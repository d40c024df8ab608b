"""What became true of a predicted text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from understudy.api.predicted import appeared

TOKENS = st.lists(st.integers(0, 5), max_size=30)


@given(TOKENS, TOKENS)
def test_no_more_appears_than_there_is(prediction: list[int], text: list[int]) -> None:
    assert 0 <= appeared(prediction, text) <= min(len(prediction), len(text))
    assert appeared(prediction, prediction) == len(prediction)
    assert appeared(prediction, [*prediction, *text]) == len(prediction)


def test_a_text_finds_back_after_it_went_another_way() -> None:
    prediction = list(range(20))
    assert appeared(prediction, [*range(8), 99, 98, *range(8, 20)]) == 20
    assert appeared(prediction, [*range(8), *range(12, 20)]) == 16
    assert appeared(prediction, [77, *range(5, 20)]) == 15
    assert appeared(prediction, [50, 51, 52]) == 0 and appeared([], [1]) == 0
