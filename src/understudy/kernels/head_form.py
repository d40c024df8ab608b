"""What a layer of the draft does with queries and keys before they meet; the same on every device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from torch import Tensor

from .attention import AttentionSpec
from .join_form import Norm


class Turning(Enum):
    """Which numbers of a query or a key are turned together by its position, of those that are turned."""

    # each with the one half of them further on
    HALVES = "halves"
    # the same, where cosines and sines of both halves stand once
    SHARED = "shared"
    # neighbours
    PAIRS = "pairs"
    # neighbours, the first of which go to the first half, and the second ones to the other
    SORTED = "sorted"
    # none is turned
    NONE = "none"

    @property
    def order(self) -> int:
        """What kernels know of it: 1 for neighbours, 2 where they are sorted, 0 for halves."""
        return {Turning.PAIRS: 1, Turning.SORTED: 2}.get(self, 0)


class Made(Enum):
    """What the products before attention make of a node, one after the other."""

    ALL = "queries, keys and values"
    # A value is what its key is before norm and turn.
    ONE_FOR_BOTH = "queries and keys"
    # Keys and values are those of an earlier layer.
    QUERIES = "queries"


@dataclass(frozen=True)
class HeadForm:
    """How one layer of the draft attends."""

    spec: AttentionSpec
    turn: Turning = Turning.HALVES
    # of queries and of keys, before they are turned: of each head, or where weights are [heads, key size], of all of a node
    norms: tuple[Norm, Norm] | None = None
    # Added to the mean square of each value, which is made one; None: values are kept as they are made.
    value_epsilon: float | None = None
    # Does a gate follow each head of queries, by whose logistic function what the head gives is multiplied?
    gated: bool = False
    made: Made = Made.ALL
    # Are the numbers that are turned the last ones of each query and key, and not the first?
    last: bool = False

    @cached_property
    def sinks(self) -> Tensor | None:
        """Those of `spec` as float32 [heads]."""
        return None if self.spec.sinks is None else self.spec.sinks.detach().float().contiguous()

    def turned(self, angles: int) -> int:
        """How many numbers of a query or a key are turned, by so many angles."""
        return 0 if self.turn is Turning.NONE else angles * (2 if self.turn is Turning.SHARED else 1)

    def heads(self, columns: int, kv_heads: int, key_size: int, value_size: int) -> int:
        """Heads of queries in a line of `columns` numbers, with so many heads of keys and values."""
        return (columns - kv_heads * self.beside(key_size, value_size)) // key_size // (2 if self.gated else 1)

    def beside(self, key_size: int, value_size: int) -> int:
        """How many numbers are made for each head of keys and values."""
        return {Made.ALL: key_size + value_size, Made.ONE_FOR_BOTH: key_size, Made.QUERIES: 0}[self.made]
