"""Weights that are published in MXFP4, made bfloat16: vector code for the columns that share exponents.

A weight is half of 0, 1, 2, 3, 4, 6, 8 or 12, with a sign, times a power of 2 that its row has for each SHARED columns. All of
these are bfloat16 numbers, whose bit patterns go up evenly with the codes but for the first step."""

from typing import Any

import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from .vector import BYTE, HALF, LONG, Code, Vector

# columns of a row that have one exponent
SHARED = 32
# bytes of the codes of a column of 64 rows, and of its exponents
CODES, EXPONENTS = 32, 64
# The least and the largest exponent, 127 more than it is, with which all codes are usual numbers.
LEAST, LARGEST = 2, 250
# The pattern of code 0 if codes went on evenly below 2, for an exponent of 0 (127); each code is `STEP` more than the one before,
# and code 1 half of what code 2 is.
FIRST, STEP, SIGN = 0x3F00, 0x40, -0x8000
RUN, HALVES = Vector(BYTE, 32), Vector(HALF, 32)


class _Fours(Code):
    """Code for the columns of one block that share exponents, which lie at the address `exponents`."""

    def __init__(self, context: Any, builder: Any, exponents: Any) -> None:
        super().__init__(context, builder)
        b = builder
        self.first = []
        for side in range(2):
            own = b.zext(self.load(self.at(exponents, 32 * side), RUN), HALVES)
            self.first.append(b.add(b.shl(own, self.all(HALVES, 7)), self.all(HALVES, FIRST - (127 << 7))))

    def column(self, codes: Any, out: Any) -> None:
        """Write the 64 weights whose codes lie at `codes`."""
        b = self.b
        run = self.load(codes, RUN)
        sides = b.and_(run, self.all(RUN, 15)), b.lshr(run, self.all(RUN, 4))
        none = self.all(HALVES, 0)
        for side, (own, first) in enumerate(zip(sides, self.first, strict=True)):
            code = b.zext(own, HALVES)
            size = b.and_(code, self.all(HALVES, 7))
            low = b.icmp_unsigned("==", size, self.all(HALVES, 1))
            pattern = b.add(first, b.shl(size, self.all(HALVES, 6)))
            pattern = b.sub(pattern, b.select(low, self.all(HALVES, STEP), none))
            pattern = b.select(b.icmp_unsigned("==", size, none), none, pattern)
            sign = b.shl(b.and_(code, self.all(HALVES, 8)), self.all(HALVES, 12))
            self.store(b.or_(pattern, sign), self.at(out, 64 * side))


@intrinsic
def _read_fours(typing: Any, codes: Any, exponents: Any, columns: Any, out: Any) -> Any:
    """Make `columns` columns of one block, which share exponents, at `out`; all others are addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, exponents, columns, out = arguments
        code = _Fours(context, builder, exponents)
        with code.over(columns, 1) as (column, _):
            code.column(code.at(codes, builder.mul(column, LONG(CODES))), code.at(out, builder.shl(column, LONG(7))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


read_fours: Any = _read_fours


def encode(blocks: Tensor) -> tuple[Tensor, Tensor] | None:
    """The codes [nb, K, 32] and exponents [nb, K / SHARED, 64] of bfloat16 `blocks` [nb, K, 64]; None where they have none."""
    count, columns, rows = blocks.shape
    if columns % SHARED:
        return None
    codes = torch.empty(count, columns, rows // 2, dtype=torch.uint8)
    exponents = torch.empty(count, columns // SHARED, rows, dtype=torch.uint8)
    # one by one, in little room
    for block, *into in zip(blocks, codes, exponents, strict=True):
        if (made := _codes_of(block.contiguous().view(torch.int16))) is None:
            return None
        for place, found in zip(into, made, strict=True):
            place.copy_(found)
    return codes, exponents


def _codes_of(block: Tensor) -> tuple[Tensor, Tensor] | None:
    """`encode` for one block, bit patterns [K, 64]."""
    columns, rows = block.shape
    words = block.to(torch.int32).view(-1, SHARED, rows)
    above, below = words >> 7 & 255, words & 127
    # Of all powers that would do, the one that makes the largest number 4 or 6; where all are 0, any.
    powers = above.amax(1, keepdim=True) - 2
    powers = torch.where(powers < 0, 127, powers)
    doubled = above - powers
    codes = torch.where(doubled < 0, 1, 2 + 2 * doubled + (below >> 6))
    codes = torch.where(above == 0, 0, codes)
    fits = (below & 63 == 0) & ((doubled >= 0) | (doubled == -1) & (below == 0)) | (above == 0) & (below == 0)
    if not fits.all() or powers.min() < LEAST or powers.max() > LARGEST:
        return None
    codes = (codes | (words < 0).to(torch.int32) << 3).view(columns, rows).to(torch.uint8)
    return codes[:, : rows // 2] | codes[:, rows // 2 :] << 4, powers.view(-1, rows).to(torch.uint8)


def decode(codes: Tensor, exponents: Tensor, out: Tensor) -> None:
    """Write the blocks into `out`, bfloat16 [nb, K, 64]; on any device, with little room beside it."""
    half = codes.shape[2]
    words = out.view(torch.int16).view(len(codes), -1, SHARED, 2 * half)
    first = (((exponents.to(torch.int16) - 127) << 7) + FIRST)[:, :, None]
    for side, own in enumerate((codes & 15, codes >> 4)):
        rows = slice(side * half, (side + 1) * half)
        size = (own & 7).to(torch.int16).view(len(codes), -1, SHARED, half)
        found = words[..., rows]
        torch.add(first[..., rows], size, alpha=STEP, out=found)
        found.sub_((size == 1).to(torch.int16), alpha=STEP)
        found.masked_fill_(size == 0, 0)
        found.bitwise_or_((own >> 3).to(torch.int16).view(size.shape) * SIGN)
