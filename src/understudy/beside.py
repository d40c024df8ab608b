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
        """In how many groups so many texts should go; 1: all together."""

    def side_by_side(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """What each of `work` gives, all under way at the same time. Raises what one of them raised, once all are over."""


@dataclass
class GroupChoice:
    """Chooses between groups of texts side by side and all texts together, by the tokens a second that each gave."""

    # By number of texts and of groups: rounds, and decaying sums of their tokens and seconds.
    seen: dict[tuple[int, int], tuple[int, float, float]] = field(default_factory=dict)

    def of(self, texts: int, groups: int) -> int:
        """In how many groups the next round of so many texts should go: `groups` or 1."""
        (many, *found), (one, *alone) = (self.seen.get((texts, count), (0, 0.0, 0.0)) for count in (groups, 1))
        if groups < 2 or many < TRIED or one < TRIED:
            return groups if many < TRIED else 1
        better, other = (groups, 1) if found[0] * alone[1] > alone[0] * found[1] else (1, groups)
        return other if (many + one) % APART < TRIED else better

    def learn(self, texts: int, groups: int, tokens: int, seconds: float) -> None:
        """Learn what a round of so many texts gave, in so many groups."""
        rounds, before, took = self.seen.get((texts, groups), (0, 0.0, 0.0))
        self.seen[texts, groups] = rounds + 1, KEPT * before + tokens, KEPT * took + seconds


def evenly(sequences: Sequence[TokenSequence], count: int) -> list[Sequence[TokenSequence]]:
    """`sequences` in `count` groups that differ by one text at most, in their order."""
    edges = [place * len(sequences) // count for place in range(count + 1)]
    return [sequences[first:last] for first, last in pairwise(edges)]
