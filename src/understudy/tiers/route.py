"""The order in which parts come through a ring.

A ring asks its route for one part at a time, as soon as there is room for it, so a route may decide late. The fixed
route knows the whole order in advance. A route for experts does not: it learns from hints what the pass will use."""

from collections.abc import Collection, Sequence
from typing import Protocol


class Route(Protocol):
    """Names the parts that a ring fetches, one after another.

    Only the ring calls it, under its own lock: a route need not be safe for several threads and must not block."""

    # The order is known in advance and never changes: every part comes in its turn and hints are not needed.
    # Where False, a reader hints each part before it takes it, and releases unread what comes on a wrong guess.
    fixed: bool

    @property
    def parts(self) -> Collection[int]:
        """Every part that the route may ever name."""
        ...

    def next(self) -> int | None:
        """The part to fetch next. None: not known yet, and the ring asks again after a hint, a release or a rewind."""
        ...

    def hint(self, parts: Sequence[int]) -> None:
        """These parts are about to be used, in this order: `next` names each of them before it returns None."""
        ...

    def rewind(self) -> None:
        """Begin a pass anew. Parts that were named before are void, whether or not they were read; so are hints."""
        ...


class FixedRoute:
    """The parts of `order`, one after another, round and round."""

    fixed = True

    def __init__(self, order: Sequence[int]) -> None:
        assert len(order) > 0, "a route without parts"
        self.parts = tuple(order)
        self._turn = 0

    def next(self) -> int:
        part = self.parts[self._turn]
        self._turn = (self._turn + 1) % len(self.parts)
        return part

    def hint(self, parts: Sequence[int]) -> None:
        """Nothing to learn: every part comes in its turn."""

    def rewind(self) -> None:
        self._turn = 0
