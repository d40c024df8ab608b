"""What is done with products of the same rows that are joined in one run, beside multiplying; the same on every device."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, Self, TypeVar

from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """A root mean square norm: x / sqrt(mean of its squares + epsilon) * weight."""

    # float32 [columns]
    weight: Tensor
    epsilon: float


class GateKind(IntEnum):
    """What opens a gate: the result is this function of the first product, times the second."""

    SILU = 1
    # by its hyperbolic tangent
    GELU = 2


@dataclass(frozen=True)
class JoinForm:
    """What is done with joined products, beside multiplying."""

    # of what is multiplied
    norm: Norm | None = None
    # of each product, None: nothing
    biases: Sequence[Tensor | None] = ()
    # None: the results lie side by side
    gate: GateKind | None = None
    # what the result is multiplied by, then the norm that it goes through, both before anything is added to it
    times: float = 1.0
    after: Norm | None = None
    # what all is multiplied by in the end
    scale: float = 1.0


PLAIN = JoinForm()


class Halved(Protocol):
    """A product."""

    @property
    def halves(self) -> list[Self]:
        """The products by the first and by the last half of its outputs; empty where these do not lie in blocks of their own."""


P = TypeVar("P", bound=Halved)


def apart(products: list[P], form: JoinForm) -> list[P]:
    """`products`, or the halves of the one that holds both of what is gated; empty where these cannot be had."""
    if form.gate is None or len(products) > 1:
        return products
    return products[0].halves if all(bias is None for bias in form.biases) else []


def halves(rows: int) -> list[range]:
    """The blocks of 64 outputs that the first and the last half of so many lie in; empty where a block holds some of both."""
    return [] if rows % 128 else [range(rows // 128), range(rows // 128, rows // 64)]
