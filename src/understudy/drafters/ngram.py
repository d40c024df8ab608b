"""Copies what followed the same few tokens earlier in the text (prompt lookup).

That costs nothing, so it fills the tile that the target runs anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..sequence import TokenSequence
from ..tree import TokenTree
from . import Base, DrafterSpec, TargetModel
from .suggest import match


def continuation(text: list[int], longest: int, length: int) -> list[int]:
    """At most `length` tokens that followed the last `longest` (or fewer) tokens of `text` at their latest earlier
    place."""
    size, end = match(text, longest)
    return text[end : end + length] if size else []


@dataclass(frozen=True)
class NGram(Base):
    """Chains copied from the sequence's own text."""

    # The most tokens that an earlier place must share with the end of the text.
    match: int
    # The most tokens that are copied.
    length: int

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        return [self._chain(sequence) for sequence in sequences]

    def _chain(self, sequence: TokenSequence) -> TokenTree:
        room = min(self.length, sequence.remaining - 1)
        return TokenTree.chain(sequence.tokens[-1:] + continuation(sequence.lookup(self.match), self.match, room))


@dataclass(frozen=True, kw_only=True)
class NGramSpec(DrafterSpec):
    """`ngram`: nothing held."""

    # The most tokens that an earlier place must share with the end of the text.
    match: int = 4
    # The most tokens that are copied.
    length: int = 15

    def __post_init__(self) -> None:
        match, length = self.match, self.length
        if match < 1 or length < 1:
            raise UsageError(f"ngram needs match and length of 1 or more, got match={match}, length={length}.")

    @property
    def max_nodes(self) -> int:
        return self.length + 1

    @property
    def deepest(self) -> int:
        return self.length

    def open(self, target: TargetModel) -> NGram:
        return NGram(self.match, self.length)
