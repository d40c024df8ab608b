"""Only what a code of 2, 3, 4, 6 or 8 bits leaves open: a bfloat16 weight's place in its code's bin, instead of its 16 bits.

The sections of a part (`beside_copy`) are the table of tiles, the dense part, the stream and the exceptions
(`kernels.residual`). A float16 weight is a bfloat16 and three bits (`kernels.trailing`), which are one section more where any of
them is 1."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..kernels import residual
from ..kernels.bins import DENSE
from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.residual import Residual
from ..kernels.trailing import PITCH, TRAILING
from ..quantizers import Tensors
from . import Encoded
from .beside_copy import BesideCopy, cut, joined, numbers_of, plain, verbatim

# the kinds of parts of bfloat16 and of float16 weights
PACKED = {torch.bfloat16: 1, torch.float16: 3}
# numbers in a header: the kind, tiles and one more, bytes of the stream, exceptions, and bytes of a column's trailing bits
NUMBERS = 5
LARGEST = 1e36  # scales beyond which the ends of bins might not be finite


class Delta(BesideCopy):
    name = "delta"
    needs_triton = True
    form = ""
    usual: Mapping[str, float] = {"int2": 9.8, "int3": 8.7, "int4": 7.7, "int6": 5.6, "int8": 4.4}
    more: Mapping[torch.dtype, float] = {torch.bfloat16: 0.0, torch.float16: float(TRAILING)}

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        if not substitute["scales"].abs().max() < LARGEST:
            return verbatim(blocks)
        made = residual.encode(blocks, substitute["codes"], substitute["scales"])
        trailing = [] if made.trailing is None else [made.trailing]
        numbers = [PACKED[blocks.dtype], len(made.table), made.stream.numel(), len(made.exceptions), PITCH * len(trailing)]
        return joined(numbers, (made.table, made.dense, made.stream, made.exceptions, *trailing), blocks)

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
        from ..kernels.gpu import trailing

        blocks = part.data.new_empty(part.shape, dtype=part.dtype) if out is None else out
        codes, scales = part.substitute["codes"], part.substitute["scales"]
        gpu.decode(part.data, codes, scales, blocks.view(torch.bfloat16), part.places)
        return trailing.narrow(part.data, codes, scales, blocks, part.places) if part.dtype == torch.float16 else blocks

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        if (kept := plain(part)) is not None:
            return Operand.plain(kept)
        return Operand.packed(_opened(part), part.substitute["codes"], part.substitute["scales"], part.dtype)


def _opened(part: Encoded) -> Residual:
    """What a part holds that does not keep the weights as they are."""
    kind, tiles, stream, exceptions, pitch = numbers_of(part.data, NUMBERS)
    assert kind == PACKED[part.dtype], f"a residual of kind {kind} of {part.dtype}"
    dense = 8 * DENSE[part.substitute["codes"].shape[2] // 8]
    columns = part.count * part.columns
    sizes = [tiles * 8, columns * dense, stream, exceptions * 4, *([columns * pitch] if pitch else [])]
    table, dense_part, bits, listed, *trailing = cut(part.data, sizes)
    spans, listed = table.view(torch.uint32).view(-1, 2), listed.view(torch.uint16).view(-1, 2)
    return Residual(dense_part, bits, spans, listed, trailing[0] if trailing else None)
