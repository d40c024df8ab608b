"""The bins of an octet's codes on a GPU (`kernels.bins`): two rows at once, in halves of a word.

Products of a code and a scale are exact in float32, so what is added to one is rounded once, as on the CPU, fused or not."""

import triton.language as tl

from ..bins import MOST
from . import helper
from .halves import choose, high_halves, interleave, spread

TOP = tl.constexpr(MOST)


@helper
def ends_of(scales, ROWS: tl.constexpr, BITS: tl.constexpr):
    """For each row: its scale, and what is added to code * scale for the lower and for the upper end of a bin."""
    ends = ()
    for row in tl.static_range(ROWS):
        word = tl.load(scales + row)
        scale = (word << 16).to(tl.float32, bitcast=True)
        zero = (word & 0xFFFF0000).to(tl.float32, bitcast=True)
        ends = ends + ((scale, zero - scale * (2 ** (BITS - 1) + 0.5), zero - scale * (2 ** (BITS - 1) - 0.5)),)
    return ends


@helper
def bins_of(low, high, ends, FIRST: tl.constexpr, BITS: tl.constexpr, DENSE: tl.constexpr, WIDER: tl.constexpr):
    """The bins of eight codes, the bytes of `low` and `high`, for rows FIRST and following of `ends`.

    For each of four pairs of rows: lower ends, upper ends, ends to count from, and for each two planes of the stream the rows that
    have them, in bytes of 255. Then how many rows have each plane, in bytes of two words."""
    TWOS: tl.constexpr = (12 - DENSE) // 2
    made = ()
    sums = ()
    for i in tl.static_range(4):
        codes = (low if i < 2 else high) >> (16 * (i % 2))
        bottom, top = _pair_ends(codes, ends[FIRST + 2 * i], ends[FIRST + 2 * i + 1])
        far, span = _span(codes, bottom, top, BITS, WIDER)
        planes = ()
        for two in tl.static_range(TWOS):
            first, second = _has(span, bottom ^ top, 2 * two, DENSE), _has(span, bottom ^ top, 2 * two + 1, DENSE)
            planes = planes + (interleave(first, second),)
        made = made + ((bottom, top, far | (top & 0x80008000), planes),)
        sums = planes if i == 0 else _added(sums, planes, TWOS)
    return made, _counted(sums, TWOS)


@helper
def _pair_ends(codes, even, odd):
    """The lower and the upper ends of two rows' bins, as bfloat16 in halves. The codes are the two lowest bytes; `even` and `odd`
    are of `ends_of`."""
    # with these bits above it, a code is a float32 without a conversion
    first = ((codes & 0xFF) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    second = (((codes >> 8) & 0xFF) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    bottom = _uppers(tl.fma(first, even[0], even[1]), tl.fma(second, odd[0], odd[1]))
    return bottom, _uppers(tl.fma(first, even[0], even[2]), tl.fma(second, odd[0], odd[2]))


@helper
def _uppers(first, second):
    """The upper 16 bits of two float32."""
    return high_halves(first.to(tl.uint32, bitcast=True), second.to(tl.uint32, bitcast=True))


@helper
def _span(codes, bottom, top, BITS: tl.constexpr, WIDER: tl.constexpr):
    """Of two rows' bins: the larger magnitude of both ends, and the largest place less 1 (32767 where a bin straddles zero)."""
    low, high = bottom & 0x7FFF7FFF, top & 0x7FFF7FFF
    rising = spread((high | 0x80008000) - low)
    far = choose(rising, high, low)
    near = low ^ high ^ far
    if WIDER > 0:
        outermost = choose(spread(top), 0, (2**BITS - 1) * 0x00010001)
        differs = outermost ^ ((codes & 0xFF) | ((codes & 0xFF00) << 8))
        far += (((0x80008000 - differs) >> 15) & 0x00010001) * WIDER
    return far, (far - near) | (spread(bottom ^ top) & 0x7FFF7FFF)


@helper
def _has(span, cross, PLANE: tl.constexpr, DENSE: tl.constexpr):
    """Flags of the rows that have a bit in a plane: that of bit DENSE + PLANE of places; the last one has the sides."""
    if DENSE + PLANE < TOP:
        return span + (0x8001 - 2 ** (DENSE + PLANE)) * 0x00010001
    if DENSE + PLANE == TOP:
        return cross
    return tl.zeros_like(cross)


@helper
def _added(sums, planes, TWOS: tl.constexpr):
    """Sums of words, one by one."""
    total = ()
    for two in tl.static_range(TWOS):
        total = total + (sums[two] + planes[two],)
    return total


@helper
def _counted(sums, TWOS: tl.constexpr):
    """Counts of planes, a byte each, in two words, from sums of bytes of 255."""
    low = _folded(sums[0]) | (_folded(sums[1]) << 16)
    high = tl.zeros_like(low)
    if TWOS > 2:
        high = _folded(sums[2])
    if TWOS > 3:
        high |= _folded(sums[3]) << 16
    return low, high


@helper
def _folded(sums):
    """Two counts, from both halves."""
    # 255 times this number is 1 modulo 2 ** 32
    counts = sums * 0xFEFEFEFF
    return (counts + (counts >> 16)) & 0xFFFF
