"""No drafting: plain decoding is a tree of one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..sequence import TokenSequence
from ..tree import TokenTree
from . import Base


class NoDraft(Base):
    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        return [TokenTree.chain(sequence.tokens[-1:]) for sequence in sequences]


def build(model: Any) -> NoDraft:
    return NoDraft()


def level() -> tuple[int, bool]:
    """There is no draft model."""
    return 0, False


def nodes() -> int:
    """Nodes of a sequence's tree: the last token alone."""
    return 1
