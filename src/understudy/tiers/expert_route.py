"""The route of a model with experts: what every pass uses comes in its order, and of what only some passes use, what was chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """Parts that follow one another in a pass: all of them are used, or, where `chosen`, those that are hinted."""

    parts: tuple[int, ...]
    chosen: bool


class ExpertRoute:
    """The parts of `stretches`, round and round: before each stretch that is chosen from it stops until parts of it are hinted,
    all of them at once, in the order in which they are used. A hint of what comes later says that none of them is."""

    fixed = False

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        assert any(stretch.parts for stretch in stretches), "a route without parts"
        self.stretches = tuple(stretches)
        self.parts = tuple(part for stretch in stretches for part in stretch.parts)
        self._places = {part: (at, place) for at, stretch in enumerate(stretches) for place, part in enumerate(stretch.parts)}
        # where it is: a stretch, and a part of it
        self._at, self._place = 0, 0
        # chosen and not named yet
        self._chosen: deque[int] = deque()

    def next(self) -> int | None:
        if self._chosen:
            return self._chosen.popleft()
        while not self.stretches[self._at].chosen:
            parts = self.stretches[self._at].parts
            if self._place < len(parts):
                self._place += 1
                return parts[self._place - 1]
            self._go(self._at + 1)
        return None

    def hint(self, parts: Sequence[int]) -> None:
        if not parts:
            return
        at, place = self._places[parts[0]]
        if self.stretches[at].chosen:
            self._chosen.extend(parts)
            self._go(at + 1)
        elif self.stretches[self._at].chosen and not self._chosen:
            self._go(at, place)

    def rewind(self) -> None:
        self._chosen.clear()
        self._go(0)

    def _go(self, at: int, place: int = 0) -> None:
        self._at, self._place = at % len(self.stretches), place
