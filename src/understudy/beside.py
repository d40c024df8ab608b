"""Groups of texts that are under way at the same time, where the layers of a model lie on several devices: while one group is
verified, others are drafted for, and no device waits for all of them to be done.

A device reads its weights for each group anew, so groups are worth it where nodes take time beside that, and where no other
work wants the processors: `ways` chooses by what was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from .sequence import TokenSequence

T = TypeVar("T")


class Beside(Protocol):
    """Devices that several groups of texts can use at the same time, each group another one."""

    def groups(self, texts: int) -> int:
        """In how many groups so many texts could go at most; 1: all together."""

    def side_by_side(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """What each of `work` gives, all under way at the same time. Raises what one of them raised, once all are over."""


def evenly(sequences: Sequence[TokenSequence], count: int) -> list[Sequence[TokenSequence]]:
    """`sequences` in `count` groups that differ by one text at most, in their order."""
    edges = [place * len(sequences) // count for place in range(count + 1)]
    return [sequences[first:last] for first, last in pairwise(edges)]
