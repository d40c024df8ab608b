"""Of several ways of doing rounds the fastest one is taken, and the others are tried now and then."""

import pytest

from understudy.ways import WayChoice


def rounds(choice: WayChoice, count: int, gains: dict[int, float], most: int = 2) -> list[int]:
    """How many things were side by side in each of so many rounds of kind 4, where each way gives so many tokens a second."""
    taken = []
    for _ in range(count):
        taken.append(choice.of(4, most))
        choice.learn(4, taken[-1], 12, 12 / gains[taken[-1]])
    return taken


@pytest.mark.parametrize("better", [1, 2])
def test_the_faster_way_is_taken_and_the_other_tried_now_and_then(better: int) -> None:
    choice, other = WayChoice(), 3 - better
    taken = rounds(choice, 300, {better: 20.0, other: 10.0})
    assert taken[:8] == [2] * 4 + [1] * 4
    assert taken.count(other) < 0.1 * len(taken) and taken[200:].count(other) > 0
    # What else wants the processors changes.
    assert rounds(choice, 200, {better: 5.0, other: 10.0})[-40:].count(other) > 30
    assert choice.of(4, 1) == 1 and choice.of(5, 2) == 2, "of another kind nothing is known"


@pytest.mark.parametrize("best", [1, 2, 4])
def test_half_as_many_are_tried_too(best: int) -> None:
    """Of all ways the fastest is taken, and the others are tried in turns."""
    choice, gains = WayChoice(), {4: 10.0, 2: 10.0, 1: 10.0} | {best: 15.0}
    taken = rounds(choice, 400, gains, most=4)
    assert taken[:12] == [4] * 4 + [2] * 4 + [1] * 4
    assert taken.count(best) > 0.85 * len(taken)
    assert all(taken[100:].count(other) >= 4 for other in (1, 2, 4)) and set(taken) == {1, 2, 4}
    assert choice.of(9, 3) == 3 and rounds(choice, 9, {3: 1.0, 1: 2.0}, most=3)[-1] == 1
