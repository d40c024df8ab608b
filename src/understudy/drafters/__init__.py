"""Drafters: who guesses what the exact model will say. Wrong guesses cost time, never a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..registry import build
from ..sequence import TokenSequence
from ..tree import TokenTree


class Drafter(Protocol):
    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        """A tree for each sequence, rooted at the sequence's last token; at most `sequence.remaining - 1` levels below the root."""

    def observe(self, sequence: TokenSequence, tree: TokenTree, path: Tensor, choices: Tensor) -> None:
        """The target has accepted `path` of `tree`; `choices[i]` is its token after node i. The cache is not yet compacted."""

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        """Only the first `length` tokens of what was in this sequence's place are still valid (0: a new text)."""

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        """A whole round gave `tokens` in `seconds`."""


class Base:
    """What a drafter that keeps no state needs not say."""

    def observe(self, sequence: TokenSequence, tree: TokenTree, path: Tensor, choices: Tensor) -> None: ...

    def rewind(self, sequence: TokenSequence, length: int) -> None: ...

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None: ...


DRAFTERS = {name: f"understudy.drafters.{name}:build" for name in ("none", "ngram", "classic", "substitute")}
"""Method name -> factory(model, pace, **options), found through the registry; `name:key=value` sets its options."""


def tree_nodes(method: str) -> int:
    """The most nodes a sequence's tree can have with this method and its options; 0: as many as pay, within what is planned."""
    found: int = build("method", {name: place.replace(":build", ":nodes") for name, place in DRAFTERS.items()}, method)
    return found


def level_nodes(method: str) -> tuple[int, bool]:
    """The most nodes that one sequence has in a level of this method's draft model, and if that is forced; 0: there is none."""
    places = {name: place.replace(":build", ":level") for name, place in DRAFTERS.items()}
    found: tuple[int, bool] = build("method", places, method)
    return found
