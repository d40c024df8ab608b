"""Only what a copy leaves open of weights that are published in FP8: the place of a weight's own code among those in its bin.

The sections of a part (`beside_copy`) are the factors of its weights, the table of tiles, the dense part, the stream and the
exceptions (`kernels.eighths_coding`)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..kernels import eighths_coding, residual
from ..kernels.eighths import BYTES_OF_FACTORS, DENSE
from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.pack import flat
from ..kernels.residual import Residual
from ..quantizers import Tensors
from . import Encoded
from .beside_copy import BesideCopy, cut, joined, numbers_of, plain, verbatim

PLACES = 2
# numbers in a header
NUMBERS = 7


class Fp8(BesideCopy):
    name = "fp8"
    needs_triton = True
    form = "fp8"
    usual: Mapping[str, float] = {"int2": 6.6, "int3": 4.9, "int4": 3.5, "int6": 1.3, "int8": 1.0}

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        own = factors or Factors(torch.ones(len(blocks), 1, 1), blocks.shape[1])
        made = eighths_coding.encode(blocks, substitute["codes"], substitute["scales"], own)
        if made is None:
            return verbatim(blocks)
        values = torch.cat((flat(own.values.contiguous()), torch.zeros(BYTES_OF_FACTORS, dtype=torch.uint8)))
        sizes = [*own.values.shape[1:], own.columns]
        numbers = [PLACES, len(made.table), made.stream.numel(), len(made.exceptions), *sizes]
        return joined(numbers, (values, made.table, made.dense, made.stream, made.exceptions), blocks)

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        if (kept := plain(part)) is not None:
            return kept if out is None else out.copy_(kept)
        made, factors = _opened(part)
        blocks = torch.empty(part.shape, dtype=part.dtype) if out is None else out
        described = eighths_coding.described(made, part.substitute["codes"], part.substitute["scales"], factors)
        residual.decode_described(described, blocks)
        return blocks

    def places(self, starts: Sequence[int], counts: Sequence[int], where: str) -> Tensor | None:
        # only now: it needs Triton
        from ..kernels.gpu import residual as gpu

        return gpu.table_of(starts, counts, where)

    def decode_on_device(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        # only now: it needs Triton
        from ..kernels.gpu import eighths as gpu

        blocks = part.data.new_empty(part.shape, dtype=part.dtype) if out is None else out
        return gpu.decode(part.data, part.substitute["codes"], part.substitute["scales"], blocks, part.places)

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        if (kept := plain(part)) is not None:
            return Operand.plain(kept)
        made, factors = _opened(part)
        return Operand.eighths(made, part.substitute["codes"], part.substitute["scales"], factors)


def _opened(part: Encoded) -> tuple[Residual, Factors]:
    """What a part holds that does not keep the weights as they are."""
    kind, tiles, stream, exceptions, groups, rows, sharing = numbers_of(part.data, NUMBERS)
    assert kind == PLACES, f"a residual of kind {kind}"
    factors = part.count * groups * rows * 4
    dense = 8 * DENSE[part.substitute["codes"].shape[2] // 8]
    sizes = (factors + BYTES_OF_FACTORS, tiles * 8, part.count * part.columns * dense, stream, exceptions * 4)
    values, table, dense_part, bits, listed = cut(part.data, sizes)
    made = Residual(dense_part, bits, table.view(torch.uint32).view(-1, 2), listed.view(torch.uint16).view(-1, 2))
    return made, Factors(values[:factors].view(torch.float32).view(part.count, groups, rows), sharing)
