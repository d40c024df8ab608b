"""No drafting: plain decoding is a tree of one node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..sequence import TokenSequence
from ..tree import TokenTree
from . import Base, DrafterSpec, TargetModel


class NoDraft(Base):
    """Trees of the root alone."""

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        return [TokenTree.chain(sequence.tokens[-1:]) for sequence in sequences]


@dataclass(frozen=True, kw_only=True)
class NoDraftSpec(DrafterSpec):
    """`none`: no options, nothing held."""

    @property
    def max_nodes(self) -> int:
        return 1

    def open(self, target: TargetModel) -> NoDraft:
        return NoDraft()
