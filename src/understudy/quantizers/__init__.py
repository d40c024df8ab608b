"""Substitutes: small copies of a weight that draft. Each quantiser is one file and one line of the table below.

All tensors of a substitute are cut by blocks of 64 output rows, so a weight may be quantised piece by piece."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ..registry import build
from .inputs import Inputs

QUANTIZERS: dict[str, str] = {
    "exact": "understudy.quantizers.exact:Identity",
    "int2": "understudy.quantizers.int2:Int2",
    "int3": "understudy.quantizers.int3:Int3",
    "int4": "understudy.quantizers.int4:Int4",
    "int6": "understudy.quantizers.int6:Int6",
    "int8": "understudy.quantizers.int8:Int8",
}

Tensors = Mapping[str, Tensor]
Linear = Callable[[Tensor], Tensor]  # [m, K] -> [m, N]


class Quantizer(Protocol):
    """Makes substitutes of weights [N, K], and the linear maps that use them."""

    name: str  # the spec that builds it again
    grouped: bool  # whether its tensors are codes and scales, which devices have products for

    def applies(self, rows: int, columns: int) -> bool:
        """Whether a weight of this shape can be quantised; `fitting` takes `exact` where it cannot."""

    def size(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
        """Bytes of the substitute of a weight of this shape (and, for `exact`, dtype)."""

    def quantize(self, weight: Tensor, inputs: Inputs | None = None) -> Tensors:
        """The substitute of some rows of a weight: whole blocks of 64, or the last rows of all.

        `inputs`: what they will be multiplied with, for those that can make use of it."""

    def merge(self, pieces: Sequence[Tensors]) -> Tensors:
        """The substitute of the whole from those of its pieces, in order."""

    def cut(self, tensors: Tensors, first: int, blocks: int) -> Tensors:
        """The substitute of the rows in `blocks` blocks from `first` on: views, nothing is copied."""

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        """The weight that the substitute stands for, [N, K] float32, the same bits on every device."""

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        """x @ weight.T for a few rows x of `dtype`, as fast as this device can. Keeps `tensors`, copies nothing big."""


@cache
def quantizer(spec: str) -> Quantizer:
    """The quantiser that `spec` names, like "int4" or "int4:group=32"."""
    made: Quantizer = build("quantizer", QUANTIZERS, spec)
    return made


def fitting(spec: str, rows: int, columns: int) -> Quantizer:
    """The quantiser that `spec` names if it can do this shape, else `exact`."""
    wanted = quantizer(spec)
    return wanted if wanted.applies(rows, columns) else quantizer("exact")


def quantised(maker: Quantizer, pieces: Iterable[Tensor], rows: int) -> Tensors:
    """The substitute of a weight of so many rows. Its `pieces` come in order, of two or more whole blocks each, but for the
    last; only one of them is held beside the substitute."""
    whole: Tensors = {}
    first, total = 0, -(-rows // 64)
    for piece in pieces:
        made, blocks = maker.quantize(piece), -(-len(piece) // 64)
        if blocks == total:
            return made
        if not whole:
            one = maker.cut(made, 0, 1)
            whole = {name: _enlarged(tensor, one[name], blocks, total) for name, tensor in made.items()}
        for name, place in maker.cut(whole, first, blocks).items():
            place.copy_(made[name])
        first += blocks
    return whole


def _enlarged(tensor: Tensor, one: Tensor, blocks: int, total: int) -> Tensor:
    """Memory for what `tensor` is for so many blocks, and `one` for one of them, of `total` blocks."""
    sizes = [size if size == own else own * total for size, own in zip(tensor.shape, one.shape, strict=True)]
    return tensor.new_empty(sizes)


def dequantised(maker: Quantizer, tensors: Tensors, shape: tuple[int, int]) -> Linear:
    """A linear map for any device: a few blocks at a time are dequantised and multiplied with."""
    total = -(-shape[0] // 64)

    def apply(x: Tensor) -> Tensor:
        pieces = []
        for first in range(0, total, 16):
            part = maker.cut(tensors, first, min(16, total - first))
            rows = min(shape[0] - first * 64, 16 * 64)
            pieces.append(x.float() @ maker.dequantize(part, (rows, shape[1])).T)
        return torch.cat(pieces, dim=1).to(x.dtype)

    return apply
