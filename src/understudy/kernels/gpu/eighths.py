"""Weights that are few numbers times a factor, decoded beside their copy on a GPU: what `kernels.eighths` does, two warps for each
block's columns of one group of the copy.

As in `residual`, the bytes are read as they travelled, header included, lanes share a column's 64 rows, and a lane fetches the bits
of its rows in one piece for each plane of the stream. Here planes are few: the sides first, then the bits of places that are not in
the dense part. The columns of a group may have several factors, each for so many neighbours: those are a tile, of which the factors
are read once. Ends of bins are in units of a factor, so products are rounded, and nothing may be fused."""

import triton
import triton.language as tl
from torch import Tensor

from ..eighths import BELOW_PATTERN, BYTES_OF_FACTORS, DENSE, MOST, WIDER, ZERO
from . import INTERPRETED, helper
from .halves import byte_of, in_order
from .octets import codes_of, dense_of
from .residual import COPIED, LISTED, UNIT, checked, put_back, window_of

# columns that are decoded at once; the interpreter is faster with few long steps
COLUMNS = 64 if INTERPRETED else 16
# lanes that share a column, each with the same number of octets
LANES = tl.constexpr(8 if INTERPRETED else 4)
# warps that decode a group's columns of a block
WARPS = 2
TOP, LAST, BELOW, FACTOR_BYTES = (tl.constexpr(each) for each in (MOST, ZERO, BELOW_PATTERN, BYTES_OF_FACTORS))


def decode(data: Tensor, codes: Tensor, scales: Tensor, out: Tensor, table: Tensor | None = None) -> Tensor:
    """The blocks into `out`, bfloat16 [nb, K, 64], from the bytes of parts as `codecs.fp8` wrote them: of all that `table` (of
    `residual.table_of`) says lie in `data`, or of the one that `data` is.

    codes uint8 [nb, K, 8 * bits]; scales bfloat16 [groups, nb * 64, 2], whose rows may be part of longer ones."""
    table, bits, group, groups, stride = checked(data, codes, scales, out, table)
    _decode[(len(out) * groups,)](
        data, codes, scales, out, table, stride, groups,
        group=group, COLUMNS=COLUMNS, LISTED=LISTED, COPIED=min(16 * (group & -group), COPIED), BITS=bits, DENSE=DENSE[bits],
        HALF=0.5 + WIDER[bits], num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["stride", "groups"])
def _decode(
    data, codes, scales, out, table, stride, groups,
    group: tl.constexpr, COLUMNS: tl.constexpr, LISTED: tl.constexpr, COPIED: tl.constexpr,
    BITS: tl.constexpr, DENSE: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Block `program // groups`, its columns of one group. The part's header: kind, tiles + 1, stream bytes, exceptions, factors of
    a block's row, factors of its rows or 1, and the columns that share one."""
    program = tl.program_id(0)
    entry = table + (program // groups) * 3
    begin, skipped, count = tl.load(entry) * UNIT, tl.load(entry + 1), tl.load(entry + 2)
    longs, words = data.to(tl.pointer_type(tl.int64)) + begin // 8, data.to(tl.pointer_type(tl.uint32)) + begin // 4
    # its block within the part, and the first of its columns
    block, start = program // groups - skipped, (program % groups) * group
    # the same, counted over all blocks, and over those of its part
    first, inside = program.to(tl.int64) * group, block * groups * group + start
    blocks = out.to(tl.pointer_type(tl.int64)) + first * 16
    # the weights as they are, behind the header
    if tl.load(longs) == 0:
        for at in range(0, group * 16, COPIED):
            spot = at + tl.arange(0, COPIED)
            tl.store(blocks + spot, tl.load(longs + 8 + inside * 16 + spot))
    else:
        listing, streamed = tl.load(longs + 1), tl.load(longs + 2)
        wide, high, sharing = tl.load(longs + 4), tl.load(longs + 5), tl.load(longs + 6)
        tiles = 64 + (count * wide * high * 4 + FACTOR_BYTES + 63) // 64 * 64
        dense = tiles + (listing * 8 + 63) // 64 * 64
        stream = dense + (count * groups * group * 8 * DENSE + 63) // 64 * 64
        tile = _tile_of(sharing, groups, group)
        # of the tiles of its part, the first of this group
        spans = words + tiles // 4 + (inside // tile) * 2
        factors = data.to(tl.pointer_type(tl.float32)) + begin // 4 + 16 + block * wide * high
        rest = words + (stream + (streamed + 63) // 64 * 64) // 4
        units = scales.to(tl.pointer_type(tl.uint32)) + (program % groups).to(tl.int64) * stride + (program // groups) * 64
        for number in range(group // tile):
            at = number * tile
            place = tl.load(spans + number * 2)
            sources = (
                codes.to(tl.pointer_type(tl.int64)) + (first + at) * BITS,
                longs + dense // 8 + (inside + at) * DENSE,
                words + stream // 4 + (place >> 5),
                units,
                factors + (start + at) // sharing * high,
            )
            here = blocks + at * 16
            _columns(sources, place & 31, here.to(tl.pointer_type(tl.uint32)), tile, high, COLUMNS, BITS, DENSE, HALF)
            listed, last = tl.load(spans + number * 2 + 1), tl.load(spans + number * 2 + 3)
            if listed < last:
                # what follows overwrites what other lanes have just written
                tl.debug_barrier()
                put_back(rest, listed, last, here.to(tl.pointer_type(tl.uint16)), LISTED)


@helper
def _tile_of(sharing, groups, group: tl.constexpr):
    """How many columns a tile has (`kernels.eighths_coding.tile_of`)."""
    size, left = sharing * 0 + group, sharing
    if sharing >= groups * group:
        left = sharing * 0
    while left > 0:
        rest = size % left
        size, left = left, rest
    return size


@helper
def _columns(
    sources, place, blocks, tile, high, COLUMNS: tl.constexpr, BITS: tl.constexpr, DENSE: tl.constexpr, HALF: tl.constexpr
):
    """All columns of a tile. `sources`: codes and dense part, in words of 64 bits, one for each bit of a code, or dense bit; the
    stream in words of 32, whose bit `place` is the tile's first; the scales of its rows, and their factors: `high` of them."""
    codes, dense, stream, scales, factors = sources
    octets: tl.constexpr = 8 // LANES
    octet = tl.arange(0, LANES)[None, :] * octets
    ends = _ends_of(scales, factors, octet * 8, high, 8 * octets, BITS, HALF)
    place = tl.zeros([COLUMNS, LANES], tl.uint32) + place
    for c in range(0, tile, COLUMNS):
        column = c + tl.arange(0, COLUMNS)[:, None]
        there = column < tile
        # none is read that lies behind the last column
        column = tl.where(there, column, 0)
        bins = ()
        few, others = tl.zeros([COLUMNS, LANES], tl.uint32), tl.zeros([COLUMNS, LANES], tl.uint32)
        for u in tl.static_range(octets):
            low, high_codes = codes_of(codes + column * BITS, octet + u, BITS)
            for r in tl.static_range(8):
                code = ((low if r < 4 else high_codes) >> (8 * (r % 4))) & 0xFF
                both = _bin_of(code, ends[8 * u + r])
                bins = bins + (both,)
                first, second = _planes_of(both, DENSE)
                few, others = few + first, others + second
        few, others = tl.where(there, few, 0), tl.where(there, others, 0)
        windows, place = _windows(stream, place, few, others, DENSE)
        for u in tl.static_range(octets):
            low, high_bits = dense_of(dense + column * DENSE, octet + u, DENSE)
            words = ()
            for r in tl.static_range(0, 8, 2):
                run = low if r < 4 else high_bits
                even, windows = _weight(bins[8 * u + r], (run >> (8 * (r % 4))) & 0xFF, windows, DENSE)
                odd, windows = _weight(bins[8 * u + r + 1], (run >> (8 * (r % 4) + 8)) & 0xFF, windows, DENSE)
                row = (octet + u) * 8 + r
                even = _rounded(even * _factor_of(factors, row, high)) >> 16
                words = words + (even | (_rounded(odd * _factor_of(factors, row + 1, high)) & 0xFFFF0000),)
            weights = tl.reshape(in_order(words[0], words[1], words[2], words[3]), [COLUMNS, LANES, 4])
            spot = (column * 32 + (octet + u) * 4)[:, :, None] + tl.arange(0, 4)[None, None, :]
            tl.store(blocks + spot, weights, mask=there[:, :, None])


@helper
def _factor_of(factors, row, high):
    """That of a row; one is that of all rows where there is no other."""
    return tl.load(factors + tl.where(high > 1, row, 0))


@helper
def _ends_of(scales, factors, row, high, ROWS: tl.constexpr, BITS: tl.constexpr, HALF: tl.constexpr):
    """For each of the rows from `row` on, in units of its factor: the scale, and what is added to code * scale for the lower and
    for the upper end of a bin."""
    ends = ()
    for r in tl.static_range(ROWS):
        word = tl.load(scales + row + r)
        inverse = tl.div_rn(1.0, _factor_of(factors, row + r, high))
        scale = (word << 16).to(tl.float32, bitcast=True) * inverse
        zero = (word & 0xFFFF0000).to(tl.float32, bitcast=True) * inverse
        ends = ends + ((scale, zero - scale * (2 ** (BITS - 1) + HALF), zero - scale * (2 ** (BITS - 1) - HALF)),)
    return ends


@helper
def _bin_of(code, ends):
    """The patterns of a bin's lower and upper end, in the halves of a word, each with its sign in all higher bits."""
    product = code.to(tl.float32) * ends[0]
    low = (product + ends[1]).to(tl.int32, bitcast=True) >> BELOW
    high = (product + ends[2]).to(tl.int32, bitcast=True) >> BELOW
    return (low & 0xFFFF) | (high << 16)


@helper
def _span_of(both):
    """Of a bin: its lower and its upper end, whether it straddles zero (1), and its largest place."""
    low, high = (both << 16) >> 16, both >> 16
    straddles = ((low ^ high) >> 31) & 1
    return low, high, straddles, tl.where(straddles == 1, LAST, tl.abs(high - low) - 1)


@helper
def _planes_of(both, DENSE: tl.constexpr):
    """The planes of the stream that a bin has, a byte of 1 each in two words: the sides, then bits of places from DENSE on."""
    _, _, straddles, most = _span_of(both)
    first, second = straddles, straddles * 0
    for bit in tl.static_range(DENSE, TOP):
        has = (most >= (1 << bit)).to(tl.int32) << (8 * ((1 + bit - DENSE) % 4))
        if 1 + bit - DENSE < 4:
            first += has
        else:
            second += has
    return first.to(tl.uint32), second.to(tl.uint32)


@helper
def _windows(stream, place, low, high, DENSE: tl.constexpr):
    """The bits of each lane's rows, a word for each plane, and the place in the stream after these columns. `low`, `high`: how many
    a lane has of each plane."""
    PLANES: tl.constexpr = 1 + TOP - DENSE
    before_low, before_high = tl.cumsum(low, 1) - low, tl.cumsum(high, 1) - high
    totals_low, totals_high = tl.sum(low, 1, keep_dims=True), tl.sum(high, 1, keep_dims=True)
    size = byte_of(totals_low, totals_high, 0)
    for plane in tl.static_range(1, PLANES):
        size += byte_of(totals_low, totals_high, plane)
    here = place + tl.cumsum(size, 0) - size
    windows = ()
    for plane in tl.static_range(PLANES):
        windows = windows + (window_of(stream, here + byte_of(before_low, before_high, plane)),)
        here += byte_of(totals_low, totals_high, plane)
    return windows, place + tl.sum(size, 0, keep_dims=True)


@helper
def _weight(both, dense, windows, DENSE: tl.constexpr):
    """A weight in units of its factor, from its bin, its dense bits, and the next of its lane's bits in each plane it has; and the
    windows without those."""
    PLANES: tl.constexpr = 1 + TOP - DENSE
    low, high, straddles, most = _span_of(both)
    bit = windows[0] & straddles.to(tl.uint32)
    left = (windows[0] >> straddles.to(tl.uint32),)
    lower = tl.where(straddles == 1, bit == 1, high < low)
    value = dense.to(tl.int32)
    for plane in tl.static_range(1, PLANES):
        has = (most >= (1 << (DENSE + plane - 1))).to(tl.uint32)
        value |= (windows[plane] & has).to(tl.int32) << (DENSE + plane - 1)
        left = left + (windows[plane] >> has,)
    number = (tl.where(lower, low, high) - value) << BELOW
    # the last place is a zero, of which the sign is left
    number = tl.where(value == LAST, (number >> 31) << 31, number)
    return number.to(tl.float32, bitcast=True), left


@helper
def _rounded(numbers):
    """The bits of float32, of which the upper half is the nearest bfloat16, of two the even one: none is NaN."""
    bits = numbers.to(tl.uint32, bitcast=True)
    return bits + ((bits >> 16) & 1) + 0x7FFF
