"""Copy what followed the same few tokens earlier in the text (prompt lookup). Free, so it fills the tile the target runs anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from ..sequence import TokenSequence
from ..tree import TokenTree
from . import Base
from .suggest import match


def continuation(text: list[int], longest: int, length: int) -> list[int]:
    """What followed the latest earlier place where the last `longest` (or fewer) tokens of `text` stand; may be empty."""
    size, end = match(text, longest)
    return text[end : end + length] if size else []


class NGram(Base):
    def __init__(self, match: int, length: int):
        if match < 1 or length < 1:
            raise UsageError(f"ngram needs match and length of 1 or more, got match={match}, length={length}.")
        self.match, self.length = match, length

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        return [self._chain(sequence) for sequence in sequences]

    def _chain(self, sequence: TokenSequence) -> TokenTree:
        room = min(self.length, sequence.remaining - 1)
        return TokenTree.chain(sequence.tokens[-1:] + continuation(sequence.tokens, self.match, room))


def build(model: Any, *, match: int = 4, length: int = 15) -> NGram:
    return NGram(match, length)


def nodes(*, match: int = 4, length: int = 15) -> int:
    """The most nodes of a sequence's tree."""
    return length + 1


def level(*, match: int = 4, length: int = 15) -> tuple[int, bool]:
    """There is no draft model."""
    return 0, False
