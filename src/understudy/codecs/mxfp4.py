"""The codes and exponents of weights that are published in MXFP4: 4.25 bits of each, whatever its copy.

They are told from the weights themselves, with exponents that may be others than the published ones where all codes of a row's 32
are small. What has none is kept as it is, behind a header that no codes have."""

import torch
from torch import Tensor

from ..kernels import fours
from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.fours import CODES, EXPONENTS, SHARED
from ..kernels.pack import BLOCK, flat
from ..quantizers import Tensors
from . import Encoded
from .verbatim import Verbatim

HEADER = 64


class Fours(Verbatim):
    name = "mxfp4"
    in_place = False
    linked = False

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return dtype == torch.bfloat16

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        return 8 * (CODES + EXPONENTS / SHARED) / BLOCK if self.applies(dtype, quantizer) else dtype.itemsize * 8

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        if blocks.dtype == torch.bfloat16 and (made := fours.encode(blocks)) is not None:
            return torch.cat([flat(each.contiguous()) for each in made])
        return torch.cat((torch.zeros(HEADER, dtype=torch.uint8), flat(blocks.contiguous())))

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        made = _opened(part)
        if isinstance(made, Tensor):
            return made if out is None else out.copy_(made)
        blocks = part.data.new_empty(part.shape, dtype=part.dtype) if out is None else out
        fours.decode(*made, blocks)
        return blocks

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        made = _opened(part)
        return Operand.plain(made) if isinstance(made, Tensor) else Operand.fours(*made)


def _opened(part: Encoded) -> Tensor | tuple[Tensor, Tensor]:
    """What it holds: codes and exponents, or the weights themselves. Their sizes tell."""
    codes, columns = part.count * part.columns * CODES, part.columns // SHARED
    if part.data.numel() != codes + part.count * columns * EXPONENTS:
        return part.data[HEADER:].view(part.dtype).view(part.shape)
    return part.data[:codes].view(part.count, -1, CODES), part.data[codes:].view(part.count, -1, EXPONENTS)
