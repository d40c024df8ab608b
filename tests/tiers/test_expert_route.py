"""What a pass uses comes in its order, whatever is chosen, however far the ring is ahead, and whatever was left out before."""

from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.tiers.expert_route import ExpertRoute, Leg
from understudy.tiers.route import Route

DENSE, CHOSEN = False, True


def route_of(*legs: tuple[bool, int]) -> ExpertRoute:
    """Legs of so many parts, whose numbers go on from one to the next."""
    made, first = [], 0
    for chosen, count in legs:
        made.append(Leg(tuple(range(first, first + count)), chosen))
        first += count
    return ExpertRoute(made)


class Ahead:
    """A ring in outline: up to `room` parts are on their way, in the order of the route."""

    def __init__(self, route: Route, room: int) -> None:
        self.route, self.room = route, room
        self.coming: deque[int] = deque()
        self.fill()

    def fill(self) -> None:
        while len(self.coming) < self.room and (part := self.route.next()) is not None:
            self.coming.append(part)

    def hint(self, parts: Sequence[int]) -> None:
        left = deque(parts)
        for part in self.coming:
            if left and left[0] == part:
                left.popleft()
        self.route.hint(left)
        self.fill()

    def passed_before(self, part: int) -> list[int]:
        """Take `part`: what came before it, unread."""
        unread = []
        while True:
            self.fill()
            assert self.coming, f"part {part} never comes"
            if (came := self.coming.popleft()) == part:
                return unread
            unread.append(came)

    def rewind(self) -> None:
        self.coming.clear()
        self.route.rewind()
        self.fill()


@given(
    shape=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=7).filter(lambda s: sum(n for _, n in s) > 0),
    room=st.integers(1, 9),
    resident=st.sets(st.integers(0, 34)),
    data=st.data(),
)
def test_each_pass_gets_what_it_chooses_and_all_else_in_order(
    shape: list[tuple[bool, int]], room: int, resident: set[int], data: st.DataObject
) -> None:
    """Passes choose some experts or none, are left half way, or go without the last leg. Nothing that nobody uses is brought,
    but what was ahead when a pass ended early. Some parts stay in memory, and whole legs may."""
    route = route_of(*shape)
    legs = [Leg(tuple(p for p in s.parts if p not in resident), s.chosen) for s in route.legs]
    if not any(leg.parts for leg in legs):
        return
    ring = Ahead(ExpertRoute(legs), room)
    complete = True
    for number in range(data.draw(st.integers(1, 4), "passes")):
        left_at = data.draw(st.integers(0, 3 * len(legs)), f"where pass {number} is left")
        without_last = data.draw(st.booleans(), f"pass {number} wants no logits") and not legs[-1].chosen
        for place, leg in enumerate(legs):
            if place == left_at or (without_last and place == len(legs) - 1):
                break
            parts = list(leg.parts)
            if leg.chosen:
                wanted = data.draw(st.sets(st.sampled_from(parts)) if parts else st.just(set[int]()), "chosen")
                parts = sorted(wanted)
            ring.hint(parts)
            for part in parts:
                unread = ring.passed_before(part)
                assert not (complete and unread), f"{unread} were brought for nothing"
                complete = True
        if place == left_at:
            ring.rewind()
        elif without_last:
            complete = not legs[-1].parts
    assert set(ring.route.parts) == {part for leg in legs for part in leg.parts}


def test_what_all_passes_use_comes_without_a_word_and_experts_do_not() -> None:
    route = route_of((DENSE, 2), (CHOSEN, 4), (DENSE, 1))
    assert not route.fixed and route.parts == tuple(range(7))
    assert [route.next() for _ in range(4)] == [0, 1, None, None]
    route.hint([3, 5])
    assert [route.next() for _ in range(6)] == [3, 5, 6, 0, 1, None], "it goes on, round to the next pass"
    route.hint([])
    assert route.next() is None
    route.hint([6])
    assert [route.next() for _ in range(3)] == [6, 0, 1], "no expert of this layer has rows"


def test_a_hint_that_comes_early_says_that_nothing_before_it_is_used() -> None:
    """The ring is full of what the pass before had no use for, so that the route stands before a leg that is chosen from."""
    route = route_of((CHOSEN, 1), (DENSE, 1), (CHOSEN, 1), (DENSE, 2))
    route.hint([1])
    assert route.next() == 1
    route.hint([2])
    assert [route.next() for _ in range(2)] == [2, 3]
    # nobody goes to the expert of the first layer
    route.hint([1])
    assert [route.next() for _ in range(3)] == [4, 1, None]


def test_layers_of_which_nothing_but_experts_streams() -> None:
    route = route_of((CHOSEN, 3), (CHOSEN, 3))
    assert route.next() is None
    route.hint([1])
    assert [route.next() for _ in range(2)] == [1, None]
    # nobody goes to an expert of the second layer
    route.hint([0, 2])
    assert [route.next() for _ in range(3)] == [0, 2, None]
    route.hint([5])
    assert [route.next() for _ in range(2)] == [5, None]


def test_a_rewind_forgets_what_was_chosen() -> None:
    route = route_of((DENSE, 1), (CHOSEN, 3))
    assert [route.next() for _ in range(2)] == [0, None]
    route.hint([1, 3])
    assert route.next() == 1
    route.rewind()
    assert [route.next() for _ in range(2)] == [0, None]


def test_a_route_without_parts_is_none() -> None:
    with pytest.raises(AssertionError, match="without parts"):
        route_of((DENSE, 0), (CHOSEN, 0))
