"""What a layer of the draft does with queries and keys before they meet; the same on every device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from torch import Tensor

from .attention import AttentionSpec
from .join_form import Norm


class Turning(Enum):
    """Which numbers of a query or a key are turned together by its position, of those that are turned: the first ones."""

    # each with the one half of them further on
    HALVES = "halves"
    # the same, where cosines and sines of both halves stand once
    SHARED = "shared"
    # neighbours
    PAIRS = "pairs"
    # none is turned
    NONE = "none"


@dataclass(frozen=True)
class HeadForm:
    """How one layer of the draft attends. There may be no softcap in `spec`."""

    spec: AttentionSpec
    turn: Turning = Turning.HALVES
    # of queries and of keys, before they are turned: of each head, or where weights are [heads, key size], of all of a node
    norms: tuple[Norm, Norm] | None = None
    # Does a gate follow each head of queries, by whose logistic function what the head gives is multiplied?
    gated: bool = False

    @cached_property
    def sinks(self) -> Tensor | None:
        """Those of `spec` as float32 [heads]."""
        return None if self.spec.sinks is None else self.spec.sinks.detach().float().contiguous()

    def turned(self, angles: int) -> int:
        """How many numbers of a query or a key are turned, by so many angles."""
        return 0 if self.turn is Turning.NONE else angles * (2 if self.turn is Turning.SHARED else 1)

    def heads(self, columns: int, kv_heads: int, key_size: int, value_size: int) -> int:
        """Heads of queries in a line of `columns` numbers, with so many heads of keys and values."""
        return ((columns - kv_heads * value_size) // key_size - kv_heads) // (2 if self.gated else 1)
