"""What a layer of the draft that attends over latent states does between its products; the same on every device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .head_form import HeadForm
from .join_form import Norm


class HeadRows(Protocol):
    """A matrix of its own for each of some `heads`, of so many `columns` and `outputs`; see `head_products.HeadProduct`."""

    heads: int
    outputs: int
    columns: int

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, heads, columns] -> [n, heads, outputs]"""


@dataclass(frozen=True)
class StateForm:
    """How heads attend over latent states."""

    heads: HeadForm
    # of a state, before it is kept
    norm: Norm
    # what makes of the first numbers of a query those that meet the state; those behind them meet what is turned of a key
    asked: HeadRows

    @property
    def rank(self) -> int:
        """Numbers of a state."""
        return self.asked.outputs


@dataclass(frozen=True)
class StateRows:
    """What products made of n nodes, perhaps side by side: their queries [n, heads, plain + turned], and keys before these are
    turned, which are a state [n, rank] before its norm, and what may be turned [n, turned]."""

    query: Tensor
    state: Tensor
    turned: Tensor
