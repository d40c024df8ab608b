"""The model's own 4-bit copy, writing scratch slots of the target's own cache. The target overwrites those slots when it
verifies, so the draft always reads the exact model's keys and values for the past, and nothing needs copying back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..registry import lookup
from ..sequence import TokenSequence
from ..tree import TokenTree
from .growing_tree import MOST_NODES
from .launch import DeviceTreeSearch
from .pace import Pace
from .suggest import WHEN
from .tree_search import WIDEST, Limits, Shape, TreeSearch


class Substitute:
    def __init__(self, search: TreeSearch, lengths: list[int]):
        self.search, self.lengths = search, lengths

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        return self.search.grow(sequences, [self.lengths[sequence.row] for sequence in sequences])

    def observe(self, sequence: TokenSequence, tree: TokenTree, path: Tensor, choices: Tensor) -> None:
        self.search.learn(sequence, path, choices)

    def rewind(self, sequence: TokenSequence, length: int) -> None: ...

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        self.search.record_round(tokens, seconds, prefill)


def shape_of(width: int, depth: int, guess: str) -> Shape:
    if bool(width) != bool(depth) or width < 0 or depth < 0:
        raise UsageError(f"A forced shape needs both width and depth, 1 or more; got width={width}, depth={depth}.")
    lookup("guess", guess, dict.fromkeys(WHEN, 0))
    if depth and guess == "on":
        raise UsageError("guess=on makes no sense with a forced width and depth: nothing is taken from the text there.")
    return Shape(width, depth, guess)


def search_of(model: Any, drafting: Any, shape: Shape) -> TreeSearch:
    """The search with the draft view of `drafting`, where that runs, for what `model` verifies. What a level costs is measured."""
    limits = Limits(drafting.cache.capacity, model.tile * model.plan.passes.trees, model.cost, model.filling)
    if drafting.device is None:
        search = TreeSearch(drafting.draft, Pace(), limits, shape)
    else:
        given = drafting.draft, drafting.device, Pace(), limits, shape
        search = DeviceTreeSearch(*given, rows=drafting.cache.rows, say=model.say)
    search.warm()
    return search


def build(model: Any, *, width: int = 0, depth: int = 0, guess: str = "auto") -> Substitute:
    return Substitute(search_of(model, model, shape_of(width, depth, guess)), model.cache.lengths)


def level(*, width: int = 0, depth: int = 0, guess: str = "auto") -> tuple[int, bool]:
    """The most nodes of a sequence in one level, and if that is forced."""
    shape = shape_of(width, depth, guess)
    return min(shape.width, MOST_NODES) or WIDEST, shape.depth > 0


def nodes(*, width: int = 0, depth: int = 0, guess: str = "auto") -> int:
    """The most nodes of a sequence's tree where a shape is forced; 0: as many as pay."""
    shape = shape_of(width, depth, guess)
    return min(1 + shape.width * shape.depth, MOST_NODES) if shape.depth else 0
