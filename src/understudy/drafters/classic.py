"""A second, small model drafts, as in classic speculative decoding (Leviathan et al., arXiv 2211.17192).

It is held whole in fast memory with a cache of its own, which follows the accepted text; the tree search is the common one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..sequence import TokenSequence
from ..tree import Nodes, TokenTree
from . import substitute
from .substitute import search_of, shape_of
from .tree_search import TreeSearch

if TYPE_CHECKING:
    from ..models.model import Model

CATCH_UP = 64


class Classic:
    def __init__(self, companion: Model, search: TreeSearch):
        self.companion, self.cache, self.search = companion, companion.cache, search

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        for sequence in sequences:
            self._catch_up(sequence)
        return self.search.grow(sequences, [self.cache.lengths[sequence.row] for sequence in sequences])

    def _catch_up(self, sequence: TokenSequence) -> None:
        """Read the accepted tokens that this model has not run yet: the prompt, and what it had not drafted itself."""
        missing = sequence.tokens[self.cache.lengths[sequence.row] : -1]
        for start in range(0, len(missing), CATCH_UP):
            chain = TokenTree.chain(missing[start : start + CATCH_UP])
            self.companion.draft(Nodes.of(chain, sequence.row, self.cache.lengths[sequence.row]))
            self.cache.keep(sequence.row, torch.arange(len(chain)))

    def observe(self, sequence: TokenSequence, tree: TokenTree, path: Tensor, choices: Tensor) -> None:
        self.search.learn(sequence, path, choices)
        ran = self.search.trees[sequence.row].children
        self.cache.keep(sequence.row, torch.tensor([node for node in path.tolist() if node in ran], dtype=torch.int64))

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        self.cache.rewind(sequence.row, min(length, self.cache.lengths[sequence.row]))

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        self.search.record_round(tokens, seconds, prefill)


def build(model: Any, *, value: str = "", width: int = 0, depth: int = 0, guess: str = "auto") -> Classic:
    return Classic(model.companion, search_of(model, model.companion, shape_of(width, depth, guess)))


def level(*, value: str = "", width: int = 0, depth: int = 0, guess: str = "auto") -> tuple[int, bool]:
    """As of `substitute`."""
    return substitute.level(width=width, depth=depth, guess=guess)


def nodes(*, value: str = "", width: int = 0, depth: int = 0, guess: str = "auto") -> int:
    """As of `substitute`."""
    return substitute.nodes(width=width, depth=depth, guess=guess)
