"""Nothing is copied: a part is rows of the original safetensors file, one after another, turned into blocks when they come."""

import torch
from torch import Tensor

from ..kernels.exact_product import Operand
from ..kernels.pack import BLOCK, block, unblock
from ..quantizers import Tensors
from .verbatim import Verbatim


class InSource(Verbatim):
    name = "link"
    in_place = False
    linked = True

    def encode(self, blocks: Tensor, substitute: Tensors) -> Tensor:
        return unblock(blocks, len(blocks) * BLOCK).view(-1).view(torch.uint8)

    def decode(
        self, data: Tensor, count: int, columns: int, dtype: torch.dtype, substitute: Tensors, out: Tensor | None = None
    ) -> Tensor:
        whole = data if data.storage_offset() % dtype.itemsize == 0 else data.clone()  # a header may have any length
        blocks = block(whole.view(dtype).view(-1, columns), out)
        assert len(blocks) == count, f"{data.numel()} bytes are {len(blocks)} blocks, not {count}"
        return blocks

    def operand(
        self, data: Tensor, count: int, columns: int, substitute: Tensors, out: Tensor | None = None
    ) -> Operand:
        return Operand.plain(self.decode(data, count, columns, torch.bfloat16, substitute, out))
