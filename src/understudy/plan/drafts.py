"""What drafts give: how many tokens a round has by how much is drafted, expected of a copy or seen in measured rounds.

That depends on text and copy and not on the machine; how long such rounds take is `rounds`' to say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from typing import Protocol

# The deepest draft that is considered, in levels.
MOST_LEVELS = 48
# How often a copy of so many bits chooses the exact model's token, measured on the built-in model (docs/log.md). 6 and 8 bits are
# expected to leave open two fifths and a quarter of what 4 do; on that model it was a quarter and a tenth, and on real text
# 6 bits gave 1.5 to 2 times the tokens of a pass.
AGREES = {"int2": 0.793, "int3": 0.915, "int4": 0.961, "int6": 0.985, "int8": 0.99, "exact": 1.0, "mixed": 0.919}
# Branches win back so much of what one level loses, where a level has WIDEST nodes; fewer win back less.
BRANCHES = 0.35
WIDTHS = (1, 2, 3, 4)
WIDEST = WIDTHS[-1]
# Shapes that are looked at between two that were measured, and one.
BETWEEN = 8


@dataclass(frozen=True)
class DraftShape:
    """Rounds of one kind, on average: how much is drafted for each row, and what that gives."""

    # Levels of the draft; 0: none.
    levels: float
    # Nodes that a level runs, and drafted nodes that the pass verifies.
    level_nodes: float
    nodes: float
    # Tokens of a round, the bonus token included.
    tokens: float


NO_DRAFT = DraftShape(0, 0, 0, 1)


class Drafts(Protocol):
    """What drafts give on some kind of text. That depends on text and copy, not on the machine."""

    @property
    def head_bytes(self) -> int:
        """Bytes of a trained head that drafts in the place of the copy, which a level reads in one layer. 0: the copy drafts."""

    def shapes(self, room: int) -> Iterator[DraftShape]:
        """Shapes of drafts of at most `room` nodes."""


@dataclass(frozen=True)
class Drafting:
    """Drafts of which only a chance is known: trees of levels that are all alike."""

    # The chance that a level's likeliest token is the target's, where all before it were.
    agrees: float
    head_bytes: int = 0

    @classmethod
    def by_copy(cls, quantizer: str) -> Drafting:
        """What is expected of a copy made by `quantizer` before anything was seen."""
        return cls(AGREES.get(quantizer.partition(":")[0], AGREES["int4"]))

    @classmethod
    def seen(cls, tokens: float, levels: float, nodes: float) -> Drafting:
        """What explains rounds of `levels` levels and `nodes` drafted nodes that gave `tokens` tokens on average."""
        low, high = 0.0, 1.0
        width = nodes / max(levels, 1e-9)
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if cls(middle).tokens(levels, width) < tokens else (low, middle)
        return cls(high)

    def tokens(self, levels: float, width: float) -> float:
        """Tokens of a round with drafts of so many levels of `width` nodes, the bonus token included."""
        won = BRANCHES * min(max(width - 1, 0.0) / (WIDEST - 1), 1.0)
        chance = self.agrees + won * (1 - self.agrees)
        return 1 + levels if chance >= 1 else (1 - chance ** (levels + 1)) / (1 - chance)

    def shape(self, levels: int, width: int = 1) -> DraftShape:
        """Drafts of so many levels of `width` nodes."""
        return DraftShape(levels, width, levels * width, self.tokens(levels, width))

    def shapes(self, room: int) -> Iterator[DraftShape]:
        return (self.shape(levels, width) for levels in range(MOST_LEVELS + 1) for width in WIDTHS if levels * width <= room)


@dataclass(frozen=True)
class SeenDrafts:
    """Drafts as they were in measured rounds, and what lies between those."""

    # By their levels, ascending; the first has none.
    points: tuple[DraftShape, ...]
    head_bytes: int = 0

    @classmethod
    def of(cls, measured: Sequence[DraftShape]) -> SeenDrafts:
        """Drafts like those `measured`, and shorter ones. A shorter draft has levels of as many nodes as the shortest of them."""
        points = sorted(measured, key=lambda shape: shape.levels)
        return cls((replace(points[0], levels=0, nodes=0, tokens=1), *points))

    def shapes(self, room: int) -> Iterator[DraftShape]:
        yield from (point for point in self.points if point.nodes <= room)
        for low, high in pairwise(self.points):
            for step in range(1, BETWEEN):
                shape = DraftShape(*(a + (b - a) * step / BETWEEN for a, b in zip(astuple(low), astuple(high), strict=True)))
                if shape.nodes <= room:
                    yield shape
