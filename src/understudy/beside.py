"""Groups of texts that are under way at the same time, where the layers of a model lie on several devices: while one group is
verified, others are drafted for, and no device waits for all of them to be done.

A device reads its weights for each group anew, so groups are worth it where nodes take time beside that, and where no other
work wants the processors: both ways are tried now and then, and the one that gives more tokens a second is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, TypeVar

from .sequence import TokenSequence

T = TypeVar("T")
# Rounds of a trial, and from the beginning of one to that of the next.
TRIED, APART = 4, 64
# What was seen of a way loses so much of its weight with each of its rounds.
KEPT = 0.9


class Beside(Protocol):
    """Devices that several groups of texts can use at the same time, each group another one."""

    def groups(self, texts: int) -> int:
        """In how many groups so many texts could go at most; 1: all together."""

    def side_by_side(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """What each of `work` gives, all under way at the same time. Raises what one of them raised, once all are over."""


@dataclass
class GroupChoice:
    """Chooses in how many groups texts go side by side, down to all of them together, by the tokens a second that each way gave."""

    # By number of texts and of groups: rounds, and decaying sums of their tokens and seconds.
    seen: dict[tuple[int, int], tuple[int, float, float]] = field(default_factory=dict)

    def of(self, texts: int, groups: int) -> int:
        """In how many groups the next round of so many texts should go: `groups`, half as many, and so on, or 1."""
        ways = [groups >> halved for halved in range(groups.bit_length())]
        seen = {way: self.seen.get((texts, way), (0, 0.0, 0.0)) for way in ways}
        for way, (rounds, _, _) in seen.items():
            if rounds < TRIED:
                return way
        # Of ways that give as much, the one with fewer groups.
        best = max(reversed(ways), key=lambda way: seen[way][1] / seen[way][2] if seen[way][2] else 0.0)
        trial, place = divmod(sum(rounds for rounds, _, _ in seen.values()), APART)
        others = [way for way in ways if way != best]
        return others[trial % len(others)] if others and place < TRIED else best

    def learn(self, texts: int, groups: int, tokens: int, seconds: float) -> None:
        """Learn what a round of so many texts gave, in so many groups."""
        rounds, before, took = self.seen.get((texts, groups), (0, 0.0, 0.0))
        self.seen[texts, groups] = rounds + 1, KEPT * before + tokens, KEPT * took + seconds


def evenly(sequences: Sequence[TokenSequence], count: int) -> list[Sequence[TokenSequence]]:
    """`sequences` in `count` groups that differ by one text at most, in their order."""
    edges = [place * len(sequences) // count for place in range(count + 1)]
    return [sequences[first:last] for first, last in pairwise(edges)]
