"""What a text says of a Linear's inputs, in little room: which of them are large, and which go together.

The second moments of K inputs are K x K numbers. Nearly all of what they say lies in a few directions, so they are kept as
a diagonal and DIRECTIONS vectors: E[x x'] ~ diag(own) + directions' directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..seeds import seeded

# vectors that are kept, and as many more that are looked at to find them
DIRECTIONS = 16
SPARE = 8
ROUNDS = 3
# the least share of the mean square that an input's own part has: what a text does not show may come all the same
LEAST = 0.01


@dataclass(frozen=True)
class Inputs:
    """The second moments of a Linear's K inputs, scaled so that their mean square is 1."""

    # what the directions leave of each input's mean square: float32 [K]
    own: Tensor
    # float32 [K, r]
    directions: Tensor

    @property
    def squares(self) -> Tensor:
        """The mean square of each input, float32 [K]."""
        return self.own + self.directions.square().sum(1)

    @classmethod
    def of(cls, x: Tensor) -> Inputs | None:
        """The moments of inputs x [n, K]; None where they are not finite, or all zero."""
        x = x.float()
        squares = x.square().mean(0)
        size = squares.mean()
        if not 1e-30 < float(size) < 1e30:
            return None
        directions = _directions(x / (size * len(x)).sqrt()).T.contiguous()
        squares = squares / size
        own = torch.maximum(squares - directions.square().sum(1), LEAST * squares + LEAST**2)
        return cls(own, directions)


def _directions(x: Tensor) -> Tensor:
    """The largest principal directions of x [n, K], each as long as its share: [r, K]. Found by iterating a subspace."""
    count = min(DIRECTIONS + SPARE, *x.shape)
    generator = seeded(0)
    basis = torch.randn((x.shape[1], count), generator=generator)
    for _ in range(ROUNDS):
        left = torch.linalg.qr(x @ basis).Q
        basis = x.T @ left
    turned = torch.linalg.eigh((basis.T @ basis).double()).eigenvectors
    found: Tensor = basis @ turned[:, -DIRECTIONS:].float()
    return found.T
