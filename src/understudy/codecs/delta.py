"""Only what a code of 2, 3, 4, 6 or 8 bits leaves open: a bfloat16 weight's place in its code's bin, instead of its 16 bits.

The sections of a part (`beside_copy`) are the table of tiles, the dense part, the stream and the exceptions
(`kernels.residual`)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..kernels import residual
from ..kernels.bins import DENSE
from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.residual import Residual
from ..quantizers import Tensors
from . import Encoded
from .beside_copy import BesideCopy, cut, joined, numbers_of, plain, verbatim

PACKED = 1
LARGEST = 1e36  # scales beyond which the ends of bins might not be finite


class Delta(BesideCopy):
    name = "delta"
    needs_triton = True
    form = ""
    usual: Mapping[str, float] = {"int2": 9.8, "int3": 8.7, "int4": 7.7, "int6": 5.6, "int8": 4.4}

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        if not substitute["scales"].abs().max() < LARGEST:
            return verbatim(blocks)
        made = residual.encode(blocks, substitute["codes"], substitute["scales"])
        numbers = [PACKED, len(made.table), made.stream.numel(), len(made.exceptions)]
        return joined(numbers, (made.table, made.dense, made.stream, made.exceptions), blocks)

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        if (kept := plain(part)) is not None:
            return kept if out is None else out.copy_(kept)
        blocks = torch.empty(part.shape, dtype=part.dtype) if out is None else out
        residual.decode(_opened(part), part.substitute["codes"], part.substitute["scales"], blocks)
        return blocks

    def places(self, starts: Sequence[int], counts: Sequence[int], where: str) -> Tensor | None:
        # only now: it needs Triton
        from ..kernels.gpu import residual as gpu

        return gpu.table_of(starts, counts, where)

    def decode_on_device(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        # only now: it needs Triton
        from ..kernels.gpu import residual as gpu

        blocks = part.data.new_empty(part.shape, dtype=part.dtype) if out is None else out
        return gpu.decode(part.data, part.substitute["codes"], part.substitute["scales"], blocks, part.places)

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        if (kept := plain(part)) is not None:
            return Operand.plain(kept)
        return Operand.packed(_opened(part), part.substitute["codes"], part.substitute["scales"])


def _opened(part: Encoded) -> Residual:
    """What a part holds that does not keep the weights as they are."""
    kind, tiles, stream, exceptions = numbers_of(part.data, 4)
    assert kind == PACKED, f"a residual of kind {kind}"
    dense = 8 * DENSE[part.substitute["codes"].shape[2] // 8]
    sizes = (tiles * 8, part.count * part.columns * dense, stream, exceptions * 4)
    table, dense_part, bits, listed = cut(part.data, sizes)
    return Residual(dense_part, bits, table.view(torch.uint32).view(-1, 2), listed.view(torch.uint16).view(-1, 2))
