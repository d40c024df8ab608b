"""Whole blocks of weights that are few numbers times a scale, beside a copy: what `eighths` reads tile by tile, and how it is made.

A tile is one block's columns of one group of the copy that also share their factors. Of each column's places in their bins the
dense part has the first DENSE bits of all rows, 8 bytes each, and the stream, for the rows that have one, the side (1: not that of
the upper end), then the next bit, ... bit 5, rows in order. A weight that is no such number times its factor, or lies outside its
code's bin, is an exception, as in `residual`."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from .bit_stream import append_bits
from .compiled import bits, compiled, float_of, word_of
from .descriptor import ResidualBlocks
from .eighths import BELOW_PATTERN, DENSE, MOST, WIDER, ZERO, reader
from .pack import BLOCK, columns_of, flat
from .residual import SLACK, Residual, list_exceptions, tile_columns
from .residual import described as residual_described
from .vector import BYTE, LONG, Code, Vector

# columns that a tile has at least
LEAST = 8
# Factors outside of these, and ends of bins beyond the second one, might not be finite in units of each other.
SMALLEST, LARGEST = 2.0**-80, 2.0**80


@dataclass(frozen=True)
class Factors:
    """What blocks of weights are multiples of."""

    # float32 [nb, K / columns, 64], or [nb, K / columns, 1] where all rows of a block have one
    values: Tensor
    # neighbouring columns that have one
    columns: int

    @classmethod
    def of_rows(cls, rows: Tensor, columns: int) -> "Factors":
        """Those of blocks whose rows have these, float32 [n, any]; of each, one holds for so many neighbouring columns."""
        count = -(-len(rows) // BLOCK)
        # rows that fill the last block up are zeros, and zeros those of a factor of 0
        places = torch.arange(count * BLOCK).clamp_(max=len(rows) - 1)
        own = torch.where(rows == 0, 1.0, rows).index_select(0, places).view(count, BLOCK, -1).transpose(1, 2)
        shared = bool((own == own[:, :, :1]).all())
        return cls((own[:, :, :1] if shared else own).contiguous(), columns)


def encode(blocks: Tensor, codes: Tensor, scales: Tensor, factors: Factors) -> Residual | None:
    """The residual of bfloat16 `blocks` [nb, K, 64] beside `codes` [nb, K, 8 * bits] and `scales` [groups,
    nb * 64, 2]; None where tiles would be too small, or factors or scales are out of range."""
    count, columns, _ = blocks.shape
    width, sizes = codes.shape[2] // 8, factors.values
    tile = tile_of(columns, scales.shape[0], width, factors.columns)
    largest = float(scales.abs().max()) * (1 << width)
    if tile < LEAST or not SMALLEST <= float(sizes.min()) <= float(sizes.max()) <= LARGEST:
        return None
    if not largest / float(sizes.min()) <= LARGEST:
        return None
    dense = torch.zeros((count, columns, DENSE[width]), dtype=torch.int64)
    stream = torch.zeros(count * columns * 8 * (1 + MOST) + SLACK, dtype=torch.uint8)
    table = torch.zeros((count * (columns // tile) + 1, 2), dtype=torch.int64)
    odd = torch.zeros((count, columns), dtype=torch.int64)
    words = bits(scales.contiguous()).view(np.uint32)[..., 0]
    own = bits(blocks.contiguous())
    of_tiles = sizes.index_select(1, torch.arange(0, columns, tile) // factors.columns)
    centre, half = 1 << width - 1, 0.5 + WIDER[width]
    offsets = np.array([centre + half, centre - half], np.float32)
    _encode(
        own, columns_of(codes).contiguous().numpy(), words, offsets, of_tiles.contiguous().numpy(),
        dense.numpy(), stream.numpy(), table.numpy(), odd.numpy(),
    )  # fmt: skip
    exceptions = torch.zeros((int(table[-1, 1]), 2), dtype=torch.uint16)
    list_exceptions(own, odd.numpy(), tile, exceptions.numpy())
    used = -(-int(table[-1, 0]) // 8) + SLACK
    return Residual(flat(dense), stream[:used], table.to(torch.uint32), exceptions)


def tile_of(columns: int, groups: int, bits: int, sharing: int) -> int:
    """How many columns a tile has, where `sharing` neighbouring columns have one factor."""
    size = tile_columns(columns, groups, bits)
    return size if sharing >= columns else math.gcd(size, sharing)


def described(residual: Residual, codes: Tensor, scales: Tensor, factors: Factors) -> ResidualBlocks:
    """The blocks that `codes`, `residual` and `factors` stand for, as kernels take them. They hold as long as all those tensors."""
    made = residual_described(residual, codes, scales)
    tile = tile_of(made.columns, scales.shape[0], made.bits, factors.columns)
    made.dense_bytes = 8 * DENSE[made.bits]
    made.sharing = made.group // tile
    made.group = tile
    made.reader = reader(made.bits)
    made.factors = factors.values.data_ptr()
    made.factor_rows = factors.values.shape[2]
    made.factor_columns = factors.columns
    return made


@intrinsic
def _append(typing: Any, stream: Any, place: Any, bits: Any, mask: Any) -> Any:
    """Write the bits in the rows of `mask` at bit `place` of the stream; the place after them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return append_bits(Code(context, builder), *arguments)

    return types.int64(*[types.int64] * 4), generate


append: Any = _append


@compiled
def _encode(
    blocks: Any, codes: Any, words: Any, offsets: Any, factors: Any, dense: Any, stream: Any, table: Any, odd: Any
) -> None:
    """Fill dense part, stream and table; `odd` int64 [nb, K]: bit j is set where row j of a column is an exception.

    offsets: by how much a code is more than the lower and the upper end of its bin. factors: [nb, tiles, 1 or 64]."""
    count, columns, _ = blocks.shape
    groups, tiles = words.shape[0], (table.shape[0] - 1) // count
    tile = columns // tiles
    lines = np.empty((5, 64), np.float32)
    found = np.empty((4, 64), np.uint8)
    places = found.ctypes.data
    place, listed, always = 0, 0, dense.shape[2]
    for b in range(count):
        for t in range(tiles):
            table[b * tiles + t, 0], table[b * tiles + t, 1] = place, listed
            own = factors[b, t]
            for j in range(64):
                word = np.int64(words[t * groups // tiles, b * 64 + j])
                factor = own[j if own.size == 64 else 0]
                inverse = np.float32(1) / factor
                scale, zero = float_of(word << 16 & 0xFFFFFFFF) * inverse, float_of(word & 0xFFFF0000) * inverse
                lines[0, j], lines[1, j], lines[4, j] = factor, scale, inverse
                lines[2, j], lines[3, j] = zero - offsets[0] * scale, zero - offsets[1] * scale
            for k in range(t * tile, (t + 1) * tile):
                _column(blocks[b, k], codes[b, k], lines, always, found)
                odd[b, k] = rows_having(places + 192, 0)
                for bit in range(always):
                    dense[b, k, bit] = rows_having(places, bit)
                sides = rows_having(places + 64, MOST)
                place = append(stream.ctypes.data, place, rows_having(places + 128, 0), sides)
                for bit in range(always, MOST):
                    place = append(stream.ctypes.data, place, rows_having(places, bit), rows_having(places + 64, bit))
                mask = odd[b, k]
                while mask != 0:
                    mask &= mask - 1
                    listed += 1
    table[count * tiles, 0], table[count * tiles, 1] = place, listed
    # numba drops what is not named any more
    found[0, 0] = 0


@compiled
def _column(weights: Any, codes: Any, lines: Any, always: int, found: Any) -> None:
    """Of each row of a column into `found` uint8 [4, 64]: its place; a bit for each bit that it has, one more than the bits of its
    place where the bin straddles zero; the side; 1 for an exception. Each row has the first `always` bits. There are no branches,
    so that LLVM makes vector code of it."""
    for j in range(64):
        word = np.int64(weights[j])
        number = word_of(float_of(word << 16) * lines[4, j])
        number = number + 0x7FFFF + (number >> BELOW_PATTERN & 1) >> BELOW_PATTERN
        back = word_of(float_of(number << BELOW_PATTERN) * lines[0, j])
        back = back + 0x7FFF + (back >> 16 & 1) >> 16
        size, zero = number & 0x7FF, word & 0x7FFF == 0
        # a number that is too small to be a usual one may be none to some processors
        tells = (back == word) & (zero | (back & 0x7F80 != 0) & (size >> 3 != 0))
        product = np.float32(codes[j]) * lines[1, j]
        low, high = word_of(product + lines[2, j]) >> BELOW_PATTERN, word_of(product + lines[3, j]) >> BELOW_PATTERN
        first, last, straddles = low & 0x7FF, high & 0x7FF, (low ^ high) >> 11 & 1
        side = (number ^ high) >> 11 & 1
        own = first if side else last
        # What is taken from less than it is turns the end's sign: a zero then counts from the other one.
        turned = zero & (straddles == 1) & (own < ZERO)
        taken = 1 - side if turned else side
        own = first if taken else last
        tells &= (not turned) | (own < ZERO)
        far = own if straddles else max(first, last)
        most = ZERO if straddles else abs(first - last) - 1
        needs = (most >= 1) | (most >= 2) << 1 | (most >= 4) << 2 | (most >= 8) << 3 | (most >= 16) << 4 | (most >= 32) << 5
        wide = most >= 32
        tells &= (straddles == 1) | (side == 0)
        nothing = zero & (number == 0) & (low == 0) & (high == 0)
        place = far - size
        fits = (place >= 0) & (place <= (needs | (1 << always) - 1)) & ((place != ZERO) | (not wide))
        fits = wide & ((straddles == 1) | (far >= ZERO)) if zero else fits
        place = ZERO if zero else place
        fits, place = fits | nothing, 0 if nothing else place
        tells &= fits
        found[0, j] = place if tells else 0
        found[1, j] = needs | straddles << MOST
        found[2, j] = taken
        found[3, j] = not tells


@intrinsic
def _rows_having(typing: Any, bytes_of_rows: Any, bit: Any) -> Any:
    """64 bits, one a row: this bit of each of 64 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, (address, bit) = Code(context, builder), arguments
        run, kind = code.load(address, Vector(BYTE, 64)), Vector(BYTE, 64)
        mask = code.spread(builder.trunc(builder.shl(LONG(1), bit), BYTE), 64)
        return builder.bitcast(builder.icmp_unsigned("!=", builder.and_(run, mask), code.all(kind, 0)), LONG)

    return types.int64(types.int64, types.int64), generate


rows_having: Any = _rows_having
