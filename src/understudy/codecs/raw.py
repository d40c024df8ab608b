"""The weight's own bytes, in blocks. Needs no substitute; decoding is a view."""

import torch
from torch import Tensor

from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..quantizers import Tensors
from . import Encoded
from .verbatim import Verbatim


class Raw(Verbatim):
    name = "raw"
    in_place = True
    linked = False

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        return blocks.contiguous().view(torch.uint8).view(-1)

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        blocks = part.data.view(part.dtype).view(part.shape)
        return blocks if out is None else out.copy_(blocks)

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        return Operand.plain(part.data.view(part.dtype).view(part.shape))
