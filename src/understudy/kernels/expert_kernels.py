"""What mixtures of experts are made of on a device: it alone knows which expert a row goes to, and the host asks for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Takes rows x [m, K], the expert of each and the first row of each expert, as in `ExpertPlaces`; gives [m, rows of a matrix]. Rows
# of no expert get any content.
ExpertLinear = Callable[[Tensor, Tensor, Tensor], Tensor]

# Takes rows x [n, K] and a weight [N, K]; gives [n, N]. The bits of a row do not depend on the other rows.
WholeProduct = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ExpertPlaces:
    """Where the nodes of a pass stand among the rows that go to experts, on the device: m = n * k rows, those of each expert one
    after the other, experts in the order of their numbers. What goes to no expert stands behind all others."""

    # int64 [m]: the node that each row is of
    nodes: Tensor
    # int32 [m], ascending: the expert that each goes to; their number, where that is none
    experts: Tensor
    # int32 [experts + 1]: the first row of each expert, and one past the last row of all
    starts: Tensor
    # int32 [n, k]: the row of each choice of each node
    rows: Tensor


class ExpertKernels(Protocol):
    """Work on routed rows that never asks the device for a value."""

    def decide(self, x: Tensor, weight: Tensor) -> Tensor:
        """What a router multiplies; see `WholeProduct`."""
        ...

    def places(self, chosen: Tensor, experts: int) -> ExpertPlaces:
        """Of the choices [n, k] of n nodes among so many experts. A number that none has: the node goes to fewer."""
        ...

    def multiply(self, x: Tensor, starts: Tensor, blocks: Tensor, first: int, out: Tensor) -> None:
        """Rows x [m, K], each times the matrix of its expert, into `out` [m, blocks of a matrix, 64].

        `blocks` [nb, K, 64]: some of those of all matrices, one below the other, from block `first` on; other blocks, and rows
        that go to no expert, are left as they are. The bits of a row do not depend on the other rows."""
        ...

    def add(self, given: Tensor, places: ExpertPlaces, weights: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """[count, columns] in `dtype`: for each node the sum of its rows of `given` [m, columns] times `weights` [n, k], in
        float32, in the order of experts, rounded once. Zeros for what there is beyond the n nodes."""
        ...
