"""Only what a code of 2, 3, 4, 6 or 8 bits leaves open: a bfloat16 weight's place in its code's bin, instead of its 16 bits.

A part is a header of 64 bytes, the table of tiles, the dense part, the stream and the exceptions (`kernels.residual`), each
at a multiple of 64 bytes. What would not be smaller is kept as it is, behind the same header."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import residual
from ..kernels.bins import DENSE
from ..kernels.eighths_coding import Factors
from ..kernels.exact_operand import Operand
from ..kernels.pack import flat
from ..kernels.residual import Residual
from ..quantizers import Tensors
from . import Encoded

HEADER, PLAIN, PACKED = 64, 0, 1
BITS = {"int2": 9.8, "int3": 8.7, "int4": 7.7, "int6": 5.6, "int8": 4.4}  # of usual weights, about
LARGEST = 1e36  # scales beyond which the ends of bins might not be finite


class Delta:
    name = "delta"
    needs_substitute = True
    in_place = False
    linked = False
    needs_triton = True
    form = ""

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return dtype == torch.bfloat16 and quantizer.partition(":")[0] in BITS

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        return BITS[quantizer.partition(":")[0]] if self.applies(dtype, quantizer) else dtype.itemsize * 8

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        if substitute["scales"].abs().max() < LARGEST:
            made = residual.encode(blocks, substitute["codes"], substitute["scales"])
            sections = [flat(part.contiguous()) for part in (made.table, made.dense, made.stream, made.exceptions)]
            places = [HEADER]
            for section in sections:
                places.append(places[-1] + padded(section.numel()))
            if places[-1] < blocks.nbytes:
                data = torch.zeros(places[-1], dtype=torch.uint8)
                numbers = [PACKED, len(made.table), made.stream.numel(), len(made.exceptions)]
                data[:32] = torch.tensor(numbers).view(torch.uint8)
                for place, section in zip(places, sections, strict=False):
                    data[place : place + section.numel()] = section
                return data
        return torch.cat((torch.full((HEADER,), PLAIN, dtype=torch.uint8), flat(blocks.contiguous())))

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        made = _opened(part)
        if isinstance(made, Tensor):
            blocks = made.view(part.dtype).view(part.shape)
            return blocks if out is None else out.copy_(blocks)
        blocks = torch.empty(part.shape, dtype=part.dtype) if out is None else out
        residual.decode(made, part.substitute["codes"], part.substitute["scales"], blocks)
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
        made = _opened(part)
        if isinstance(made, Tensor):
            return Operand.plain(made.view(torch.bfloat16).view(part.shape))
        return Operand.packed(made, part.substitute["codes"], part.substitute["scales"])


def _opened(part: Encoded) -> Residual | Tensor:
    """What it holds: a residual, or the weights' own bytes."""
    data = part.data
    kind, tiles, stream, exceptions = data[:32].view(torch.int64).tolist()
    if kind == PLAIN:
        return data[HEADER:]
    sections, place = [], HEADER
    dense = 8 * DENSE[part.substitute["codes"].shape[2] // 8]
    for size in (tiles * 8, part.count * part.columns * dense, stream, exceptions * 4):
        sections.append(data[place : place + size])
        place += padded(size)
    assert kind == PACKED and place == data.numel(), f"a residual of {data.numel()} bytes has {place}, kind {kind}"
    table, listed = sections[0].view(torch.uint32).view(-1, 2), sections[3].view(torch.uint16).view(-1, 2)
    return Residual(sections[1], sections[2], table, listed)


def padded(size: int) -> int:
    return -(-size // 64) * 64
