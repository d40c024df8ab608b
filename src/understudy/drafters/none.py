"""No drafting: plain decoding is a tree of one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..row import Row
from ..tree import TokenTree
from . import Base


class NoDraft(Base):
    def draft(self, rows: Sequence[Row]) -> list[TokenTree]:
        return [TokenTree.chain(row.tokens[-1:]) for row in rows]


def build(model: Any) -> NoDraft:
    return NoDraft()


def level() -> tuple[int, bool]:
    """There is no draft model."""
    return 0, False


def nodes() -> int:
    """Nodes of a row's tree: the last token alone."""
    return 1
