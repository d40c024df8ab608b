"""Only what a copy leaves open of weights that are published in FP8: the place of a weight's own code among those in its bin.

A part is a header of 64 bytes, the factors of its weights, the table of tiles, the dense part, the stream and the exceptions
(`kernels.eighths_coding`), each at a multiple of 64 bytes. What would not be smaller is kept as it is, behind the same header."""

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
from .delta import BITS as ALL_BITS
from .delta import HEADER, PLAIN, padded
from .verbatim import Verbatim

PLACES = 2
BITS = {"int2": 6.6, "int3": 4.9, "int4": 3.5, "int6": 1.3, "int8": 1.0}  # of usual weights, about
assert BITS.keys() == ALL_BITS.keys()


class Fp8(Verbatim):
    name = "fp8"
    needs_substitute = True
    in_place = False
    linked = False
    form = "fp8"

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return dtype == torch.bfloat16 and quantizer.partition(":")[0] in BITS

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        return BITS[quantizer.partition(":")[0]] if self.applies(dtype, quantizer) else dtype.itemsize * 8

    def encode(self, blocks: Tensor, substitute: Tensors, factors: Factors | None = None) -> Tensor:
        own = factors or Factors(torch.ones(len(blocks), 1, 1), blocks.shape[1])
        made = eighths_coding.encode(blocks, substitute["codes"], substitute["scales"], own)
        if made is not None:
            values = torch.cat((flat(own.values.contiguous()), torch.zeros(BYTES_OF_FACTORS, dtype=torch.uint8)))
            sections = [values, *(flat(each.contiguous()) for each in (made.table, made.dense, made.stream, made.exceptions))]
            places = [HEADER]
            for section in sections:
                places.append(places[-1] + padded(section.numel()))
            if places[-1] < blocks.nbytes:
                data = torch.zeros(places[-1], dtype=torch.uint8)
                sizes = [*own.values.shape[1:], own.columns]
                numbers = [PLACES, len(made.table), made.stream.numel(), len(made.exceptions), *sizes]
                data[: 8 * len(numbers)] = torch.tensor(numbers).view(torch.uint8)
                for place, section in zip(places, sections, strict=False):
                    data[place : place + section.numel()] = section
                return data
        return torch.cat((torch.full((HEADER,), PLAIN, dtype=torch.uint8), flat(blocks.contiguous())))

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        made = _opened(part)
        if isinstance(made, Tensor):
            return made if out is None else out.copy_(made)
        blocks = torch.empty(part.shape, dtype=part.dtype) if out is None else out
        described = eighths_coding.described(made[0], part.substitute["codes"], part.substitute["scales"], made[1])
        residual.decode_described(described, blocks)
        return blocks

    def decode_on_device(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        # the host reads the header, and torch decodes
        assert part.places is None, "parts are decoded one at a time"
        made = _opened(part)
        if isinstance(made, Tensor):
            return made if out is None else out.copy_(made)
        blocks = part.data.new_empty(part.shape, dtype=part.dtype) if out is None else out
        eighths_coding.decode(made[0], part.substitute["codes"], part.substitute["scales"], made[1], blocks)
        return blocks

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        made = _opened(part)
        if isinstance(made, Tensor):
            return Operand.plain(made)
        return Operand.eighths(made[0], part.substitute["codes"], part.substitute["scales"], made[1])


def _opened(part: Encoded) -> tuple[Residual, Factors] | Tensor:
    """What it holds: a residual and factors, or the weights themselves."""
    data = part.data
    kind, tiles, stream, exceptions, groups, rows, sharing, _ = data[:HEADER].view(torch.int64).tolist()
    if kind == PLAIN:
        return data[HEADER:].view(part.dtype).view(part.shape)
    sections, place = [], HEADER
    factors = part.count * groups * rows * 4
    dense = 8 * DENSE[part.substitute["codes"].shape[2] // 8]
    for size in (factors + BYTES_OF_FACTORS, tiles * 8, part.count * part.columns * dense, stream, exceptions * 4):
        sections.append(data[place : place + size])
        place += padded(size)
    assert kind == PLACES and place == data.numel(), f"a residual of {data.numel()} bytes has {place}, kind {kind}"
    values = sections[0][:factors].view(torch.float32).view(part.count, groups, rows)
    table, listed = sections[1].view(torch.uint32).view(-1, 2), sections[4].view(torch.uint16).view(-1, 2)
    return Residual(sections[2], sections[3], table, listed), Factors(values, sharing)
