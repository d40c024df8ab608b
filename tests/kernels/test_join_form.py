"""Which blocks hold the halves of a weight's outputs."""

from understudy.kernels.join_form import PLAIN, halves


def test_halves_have_blocks_of_their_own_or_there_are_none() -> None:
    assert halves(256) == [range(2), range(2, 4)]
    assert halves(128) == [range(1), range(1, 2)]
    assert halves(192) == [] and halves(130) == []


def test_nothing_is_done_unless_it_is_asked_for() -> None:
    assert (PLAIN.norm, PLAIN.gate, PLAIN.after, PLAIN.times, PLAIN.biases) == (None, None, None, 1.0, ())
