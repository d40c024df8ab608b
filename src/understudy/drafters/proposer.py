"""Proposers: who says what may follow a node. A tree search asks one; the substitute and a second model are two of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor

from ..cache import Cache
from ..devices import Device
from ..sequence import TokenSequence
from ..tree import Nodes
from . import DraftModel, OwnCache, Verified


class Proposer(Protocol):
    """Says what may follow a node. What it must remember of a text (keys and values, hidden states) it keeps by
    cache row."""

    @property
    def cache(self) -> Cache:
        """Where its nodes lie: node i of a tree at slot `length + i` of the sequence's row."""

    @property
    def device(self) -> Device:
        """Where it runs."""

    @property
    def deepest(self) -> int:
        """Edges between a tree's root and its deepest node at most."""

    def prepare(self, sequences: Sequence[TokenSequence]) -> list[int]:
        """Read what was accepted since the last draft. Returns the length of each sequence in `cache`: its tree
        begins there."""

    def forward(self, nodes: Nodes) -> Tensor:
        """Logits [n, vocab] after each of `nodes`, whose ancestors were run before or are among them."""

    def observe(self, verified: Verified, ran: Collection[int]) -> None:
        """Learn what the exact model found. `ran`: the nodes of the tree that `forward` has run; none of a prompt's
        chunk."""

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        """Forget all but the first `length` tokens of what was in the cache row of `sequence`."""

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None:
        """Keep for `sequence`, of which nothing is kept yet, what is kept of the first `length` tokens in cache row `row`."""

    def reach(self, row: int, length: int) -> int:
        """As `Drafter.reach`."""

    @property
    def own_cache(self) -> OwnCache | None:
        """As `Drafter.own_cache`."""


class ModelProposer:
    """A model proposes, in a cache that somebody else keeps in step with the text."""

    def __init__(self, model: DraftModel):
        self.model = model
        self.cache = model.cache
        self.device = model.device
        self.deepest = model.cache.deepest

    def prepare(self, sequences: Sequence[TokenSequence]) -> list[int]:
        return [self.cache.lengths[sequence.row] for sequence in sequences]

    def forward(self, nodes: Nodes) -> Tensor:
        return self.model.draft(nodes)

    def observe(self, verified: Verified, ran: Collection[int]) -> None: ...

    def rewind(self, sequence: TokenSequence, length: int) -> None: ...

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None: ...

    def reach(self, row: int, length: int) -> int:
        return length

    @property
    def own_cache(self) -> OwnCache | None:
        return None
