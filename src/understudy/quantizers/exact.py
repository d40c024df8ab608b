"""The weight itself, in blocks. Nothing is left to stream: draft and target share the tensor."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..kernels import exact_product
from ..kernels.exact_operand import Operand
from ..kernels.pack import BLOCK, block, blocks_of, unblock
from . import Linear, Tensors
from .inputs import Inputs


class Identity:
    """For weights that no other quantiser can do, and for tests: a drafter that is always right."""

    name = "exact"
    grouped = False

    def applies(self, rows: int, columns: int) -> bool:
        return True

    def size(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
        return blocks_of(rows) * BLOCK * columns * dtype.itemsize

    def quantize(self, weight: Tensor, inputs: Inputs | None = None) -> Tensors:
        return {"weight": block(weight)}

    def merge(self, pieces: Sequence[Tensors]) -> Tensors:
        return {"weight": torch.cat([piece["weight"] for piece in pieces])}

    def cut(self, tensors: Tensors, first: int, blocks: int) -> Tensors:
        return {"weight": tensors["weight"][first : first + blocks]}

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        return unblock(tensors["weight"], shape[0]).float()

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        blocks = tensors["weight"]
        rows = dtype if dtype == torch.float32 else torch.bfloat16
        if blocks.device.type == "cpu" and exact_product.applies(blocks.dtype, shape[1], rows):
            return partial(_multiply, exact_product.BlockProduct([(Operand.plain(blocks), 0)], rows=rows), shape[0])
        return self.by_torch(tensors, shape, dtype)

    def by_torch(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        """`linear` by torch, which any device runs in its own time."""
        blocks = tensors["weight"]

        def apply(x: Tensor) -> Tensor:
            y = torch.matmul(x.to(blocks.dtype), blocks)  # [nb, m, 64]
            return y.transpose(0, 1).reshape(x.shape[0], -1)[:, : shape[0]].to(dtype)

        return apply


def _multiply(product: exact_product.BlockProduct, rows: int, x: Tensor) -> Tensor:
    """At the speed memory gives the weights, for a few rows of any dtype."""
    out = torch.empty((len(x), product.end, BLOCK), dtype=product.dtype)
    product([x.to(product.dtype)], out)
    return out.view(len(x), -1)[:, :rows].to(x.dtype)
