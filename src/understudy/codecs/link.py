"""Nothing is copied: a part is rows of the original safetensors file, one after another, turned into blocks when they come."""

import torch
from torch import Tensor

from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.pack import BLOCK, block, unblock
from ..quantizers import Tensors
from . import Encoded
from .verbatim import Verbatim


class InSource(Verbatim):
    name = "link"
    in_place = False
    linked = True

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        return unblock(blocks, len(blocks) * BLOCK).view(-1).view(torch.uint8)

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        # a header may have any length
        whole = part.data if part.data.storage_offset() % part.dtype.itemsize == 0 else part.data.clone()
        blocks = block(whole.view(part.dtype).view(-1, part.columns), out)
        assert len(blocks) == part.count, f"{whole.numel()} bytes are {len(blocks)} blocks, not {part.count}"
        return blocks

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        return Operand.plain(self.decode(part, out))
