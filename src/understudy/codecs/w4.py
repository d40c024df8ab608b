"""The codes and scales of weights that are published in four bits: 4.5 bits of each where 32 columns share a bfloat16 scale.

They are told from the weights and the published scales, with zero points that may be others than the published ones. What has none
is kept as it is. The sections of a part (`beside_copy`) are codes, scales, and zero points where not all are the usual one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import residual, scaled_codes
from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.pack import BLOCK
from ..kernels.scaled_codes import ScaledCodes
from ..kernels.scaled_fours import CODES
from ..quantizers import Tensors
from . import Encoded
from .beside_copy import cut, joined, numbers_of, plain, verbatim
from .verbatim import Verbatim

# the kind of a part of codes
SCALED = 1
# numbers in a header: the kind, columns that share a scale, which of SCALES its type is, 1 where there are zero points, and 1 where
# weights are float16 before they are bfloat16
NUMBERS = 5
SCALES = (torch.bfloat16, torch.float16, torch.float32)


class W4(Verbatim):
    name = "w4"
    in_place = False
    linked = False
    needs_triton = True
    form = "int4"

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return dtype in (torch.bfloat16, torch.float16)

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        return 4.5 if self.applies(dtype, quantizer) else dtype.itemsize * 8

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        if factors is None or not self.applies(blocks.dtype, ""):
            return verbatim(blocks)
        if (made := scaled_codes.encode(blocks, factors)) is None:
            return verbatim(blocks)
        zeros = [] if made.zeros is None else [made.zeros]
        numbers = [SCALED, made.columns, SCALES.index(made.scales.dtype), len(zeros), int(made.halved)]
        return joined(numbers, (made.codes, made.scales, *zeros), blocks)

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        if (kept := plain(part)) is not None:
            return kept if out is None else out.copy_(kept)
        made = _opened(part)
        blocks = part.data.new_empty(part.shape, dtype=part.dtype) if out is None else out
        if part.dtype == torch.bfloat16:
            residual.decode_described(scaled_codes.described(made, part.dtype), blocks)
        else:
            scaled_codes.decode(made, blocks)
        return blocks

    def places(self, starts: Sequence[int], counts: Sequence[int], where: str) -> Tensor | None:
        # only now: it needs Triton
        from ..kernels.gpu import residual as gpu

        return gpu.table_of(starts, counts, where)

    def decode_on_device(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        # only now: it needs Triton
        from ..kernels.gpu import scaled_fours as gpu

        blocks = part.data.new_empty(part.shape, dtype=part.dtype) if out is None else out
        return gpu.decode(part.data, blocks, part.places)

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        return Operand.plain(kept) if (kept := plain(part)) is not None else Operand.scaled(_opened(part), part.dtype)


def _opened(part: Encoded) -> ScaledCodes:
    """What a part holds that does not keep the weights as they are."""
    kind, sharing, of_scales, with_zeros, halved = numbers_of(part.data, NUMBERS)
    assert kind == SCALED, f"a part of kind {kind}"
    count, groups = part.count * part.columns, part.count * part.columns // sharing * BLOCK
    sizes: Sequence[int] = [count * CODES, groups * SCALES[of_scales].itemsize, *[groups] * with_zeros]
    codes, scales, *zeros = cut(part.data, sizes)
    shape = part.count, part.columns // sharing, BLOCK
    return ScaledCodes(
        codes.view(part.count, part.columns, CODES),
        scales.view(SCALES[of_scales]).view(shape),
        zeros[0].view(torch.int8).view(shape) if zeros else None,
        sharing,
        bool(halved),
    )
