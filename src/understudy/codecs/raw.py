"""The weight's own bytes, in blocks. Needs no substitute; decoding is a view."""

import torch
from torch import Tensor

from ..kernels.exact_product import Operand
from . import Tensors


class Raw:
    name = "raw"
    needs_substitute, in_place, linked = False, True, False

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return True

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        return dtype.itemsize * 8

    def encode(self, blocks: Tensor, substitute: Tensors) -> Tensor:
        return blocks.contiguous().view(torch.uint8).view(-1)

    def decode(
        self, data: Tensor, count: int, columns: int, dtype: torch.dtype, substitute: Tensors, out: Tensor | None = None
    ) -> Tensor:
        blocks = data.view(dtype).view(count, columns, 64)
        return blocks if out is None else out.copy_(blocks)

    def operand(
        self, data: Tensor, count: int, columns: int, substitute: Tensors, out: Tensor | None = None
    ) -> Operand:
        return Operand.plain(data.view(torch.bfloat16).view(count, columns, 64))
