"""Which of the states that were kept a node may begin at."""

import torch

from understudy.recurrent_tips import Tips
from understudy.tree import AcceptedPath

STATES = [torch.full((1, 1, 1), float(i)) for i in range(3)]


def test_an_end_becomes_a_tip_where_its_line_is_accepted() -> None:
    tips = Tips(2)
    tips.ends[0] = 5, STATES[0]
    assert tips.tips == [None, None]
    tips.keep(0, 0, AcceptedPath(torch.arange(5)))
    assert tips.tips[0] == (5, STATES[0]) and tips.ends[0] is None and tips.lengths == [5, 0]
    # of three accepted nodes the last lay elsewhere
    tips.ends[0] = 8, STATES[1]
    tips.keep(0, 5, AcceptedPath(torch.tensor([0, 1, 3])))
    assert tips.tips[0] == (5, STATES[0]) and tips.lengths[0] == 8
    tips.ends[0] = 9, STATES[1]
    tips.keep(0, 8, AcceptedPath(torch.tensor([0, 2])))
    assert tips.tips[0] == (9, STATES[1])


def test_what_is_written_over_or_gone_back_behind_is_forgotten() -> None:
    tips = Tips(2)
    tips.tips[0], tips.ends[0] = (4, STATES[0]), (9, STATES[1])
    tips.write(0, 9)
    assert tips.ends[0] == (9, STATES[1])
    tips.write(0, 8)
    assert tips.ends[0] is None and tips.tips[0] == (4, STATES[0])
    tips.ends[0] = 9, STATES[1]
    tips.copy(0, 1)
    tips.rewind(0, 3)
    assert tips.tips[0] is None and tips.tips[1] is not None and tips.tips[1][0] == 4 and tips.ends == [None, None]
    tips.rewind(1, 4)
    assert tips.tips[1] is not None and tips.lengths == [3, 4]


def test_marks_are_found_until_they_are_written_over() -> None:
    tips = Tips(2)
    for tokens, state in zip((64, 128, 192), STATES, strict=True):
        tips.mark(0, tokens, state)
    assert tips.marked(0, 64) is None and tips.marked(0, 128) is STATES[1] and tips.marked(1, 128) is None
    tips.copy(0, 1)
    tips.write(0, 191)
    assert tips.marked(0, 192) is None and tips.marked(0, 128) is STATES[1]
    tips.keep(1, 100, AcceptedPath(torch.arange(90)))
    kept = tips.marked(1, 128)
    assert tips.marked(1, 192) is None and kept is not None and torch.equal(kept, STATES[1])
    tips.rewind(1, 127)
    assert tips.marked(1, 128) is None


def test_memory_of_states_that_are_not_kept_any_more_is_used_again() -> None:
    tips, like = Tips(2), STATES[0]
    first, second = tips.rooms(0, 2, like)
    assert first.shape == like.shape and first is not second
    tips.ends[0] = 8, first
    tips.mark(0, 5, second)
    third = tips.rooms(0, 1, like)[0]
    assert all(third is not each for each in (first, second))
    tips.keep(0, 0, AcceptedPath(torch.arange(8)))
    tips.ends[0] = 9, third
    # a row that was copied has its own
    tips.copy(0, 1)
    copied = tips.tips[1]
    assert copied is not None and copied[0] == 8 and copied[1] is not first and tips.marks[1][0][1] is not second
    tips.rewind(0, 4)
    found = tips.rooms(0, 3, like)
    assert sum(each is old for each in found for old in (first, second, third)) == 3


def test_a_state_that_is_kept_as_several_is_one_place_in_memory() -> None:
    tips, like = Tips(1), STATES[0]
    both = tips.rooms(0, 1, like)[0]
    tips.mark(0, 64, both)
    tips.ends[0] = 64, both
    tips.rooms(0, 1, like)
    tips.rewind(0, 0)
    found = tips.rooms(0, 3, like)
    assert len({each.data_ptr() for each in found}) == 3
    # of those that are not kept then one is held for later
    tips.ends[0] = 9, found[1]
    tips.settle(0)
    places = [found[0].data_ptr(), found[2].data_ptr()]
    spare = tips.rooms(0, 1, like)[0].data_ptr()
    assert spare == places[0] and len(tips._made[0]) == 2
