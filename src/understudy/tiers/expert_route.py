"""The route of a model with experts: what every pass uses comes in its order, and of what only some passes use, what was chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Leg:
    """Parts that follow one another in a pass: all of them are used, or, where `chosen`, those that are hinted."""

    parts: tuple[int, ...]
    chosen: bool


class ExpertRoute:
    """The parts of `legs`, round and round: before each leg that is chosen from, it stops until parts of it are hinted,
    all of them at once, in the order in which they are used. A hint of what comes later says that none of them is."""

    fixed = False

    def __init__(self, legs: Sequence[Leg]) -> None:
        assert any(leg.parts for leg in legs), "a route without parts"
        self.legs = tuple(legs)
        self.parts = tuple(part for leg in legs for part in leg.parts)
        self._places = {part: (at, place) for at, leg in enumerate(legs) for place, part in enumerate(leg.parts)}
        # where it is: a leg, and a part of it
        self._at, self._place = 0, 0
        # chosen and not named yet
        self._chosen: deque[int] = deque()
        # where a part lies that was hinted before it got so far: of what is chosen from on the way nothing is used
        self._hinted: tuple[int, int] | None = None

    def next(self) -> int | None:
        if self._chosen:
            return self._chosen.popleft()
        while True:
            leg = self.legs[self._at]
            if leg.chosen:
                if self._hinted is None:
                    return None
                self._go(*self._hinted)
                continue
            if self._hinted is not None and self._hinted[0] == self._at and self._hinted[1] >= self._place:
                self._hinted = None
            if self._place < len(leg.parts):
                self._place += 1
                return leg.parts[self._place - 1]
            self._go(self._at + 1)

    def hint(self, parts: Sequence[int]) -> None:
        if not parts:
            return
        at, place = self._places[parts[0]]
        self._hinted = None
        if self.legs[at].chosen:
            self._chosen.extend(parts)
            self._go(at + 1)
        elif self.legs[self._at].chosen and not self._chosen:
            self._go(at, place)
        else:
            self._hinted = at, place

    def rewind(self) -> None:
        self._chosen.clear()
        self._hinted = None
        self._go(0)

    def _go(self, at: int, place: int = 0) -> None:
        self._at, self._place = at % len(self.legs), place
