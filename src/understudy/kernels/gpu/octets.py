"""Eight rows of a column, an octet, read and put together on a GPU: a byte a row in two words, and two rows a word at the end.

Bits of the stream are taken row by row from a word whose bytes hold up to four planes each; a byte moves on by a bit where its
row has that plane."""

import triton.language as tl

from . import helper
from .halves import byte_of, choose, high_halves, low_halves, spread


@helper
def codes_of(codes, octet, BITS: tl.constexpr):
    """The codes of an octet, a byte each, in two words. `codes`: its column's, in words of 64 bits, as `kernels.pack` says."""
    if BITS == 8:
        return _halved(tl.load(codes + octet))
    if BITS == 4 or BITS == 6:
        low, high = _halved(tl.load(codes + octet % 4))
        by = octet // 4 * 4
        low, high = (low >> by) & 0x0F0F0F0F, (high >> by) & 0x0F0F0F0F
        if BITS == 6:
            upper_low, upper_high = codes_of(codes + 4, octet, 2)
            low |= upper_low << 4
            high |= upper_high << 4
        return low, high
    low, high = _halved(tl.load(codes + octet % 2))
    by = octet // 2 * 2
    low, high = (low >> by) & 0x03030303, (high >> by) & 0x03030303
    if BITS == 3:
        third_low, third_high = _halved(tl.load(codes + 2))
        low |= ((third_low >> octet) & 0x01010101) << 2
        high |= ((third_high >> octet) & 0x01010101) << 2
    return low, high


@helper
def dense_of(dense, octet, DENSE: tl.constexpr):
    """The dense bits of an octet's places, a byte a row, in two words. `dense`: its column's, in words of 64 bits."""
    low = tl.zeros_like(octet).to(tl.uint32)
    high = low
    if DENSE >= 4:
        low, high = codes_of(dense, octet, 4)
    for bit in tl.static_range(4 if DENSE >= 4 else 0, DENSE):
        run = tl.load((dense + bit).to(tl.pointer_type(tl.uint8)) + octet).to(tl.uint32)
        # each of four bits to a byte of its own
        low |= (((run & 15) * 0x00204081) & 0x01010101) << bit
        high |= (((run >> 4) * 0x00204081) & 0x01010101) << bit
    return low, high


@helper
def _halved(long):
    """The low and the high 32 bits of 64."""
    return long.to(tl.uint32), (long >> 32).to(tl.uint32)


@helper
def passed(windows, counts, DENSE: tl.constexpr):
    """The windows (a word for each plane) without the bits that an octet has used."""
    left = ()
    for plane in tl.static_range(11 - DENSE):
        left = left + (windows[plane] >> byte_of(counts[0], counts[1], plane),)
    return left


@helper
def weights_of(pairs, low, high, windows, DENSE: tl.constexpr):
    """An octet's weights, in four words of two rows. `pairs`: of `bins.bins_of`; `low`, `high`: of `dense_of`; `windows`: the bits
    of its rows in each plane."""
    PLANES: tl.constexpr = 11 - DENSE
    first = _bytes(windows, 0, PLANES)
    second = first
    if PLANES > 4:
        second = _bytes(windows, 4, PLANES)
    words = ()
    for i in tl.static_range(4):
        dense = (low if i < 2 else high) >> (16 * (i % 2))
        value, below, first, second = _places(dense, pairs[i][3], first, second, DENSE)
        words = words + (_pair(pairs[i], value, below),)
    return words


@helper
def _pair(bins, value, below):
    """The weights of two rows, from their places and from which of them are on the side of the lower end."""
    bottom, top, end, _ = bins
    end = choose(spread(bottom ^ top), choose(below, bottom, top), end)
    weight = ((end | 0x80008000) + 0x00010001 - value) & 0x7FFF7FFF
    return weight | (end & 0x80008000)


@helper
def _places(dense, planes, first, second, DENSE: tl.constexpr):
    """The places of two rows in their bins, and 65535 for a row on the side of the lower end; what is left of both words.

    `dense`: two bytes; `planes`: which rows have which; `first`, `second`: the next bits of planes 0 to 3, and of the others."""
    PLANES: tl.constexpr = 11 - DENSE
    value = (dense & 0xFF) | ((dense & 0xFF00) << 8)
    even, odd, first = _taken(first, low_halves(planes[0], planes[1]), high_halves(planes[0], planes[1]))
    value |= _gathered(even, odd, DENSE, 3 if PLANES == 4 else 4)
    if PLANES > 6:
        even, odd, second = _taken(second, low_halves(planes[2], planes[3]), high_halves(planes[2], planes[3]))
        value |= _gathered(even, odd, DENSE + 4, PLANES - 5)
    elif PLANES > 4:
        even, odd, second = _taken(second, planes[2], planes[2] >> 16)
        if PLANES == 6:
            value |= ((even | (odd << 16)) & 0x00010001) << (DENSE + 4)
    # the sides are the last plane
    SIDE: tl.constexpr = 8 * ((PLANES - 1) % 4)
    return value, spread(((even >> SIDE) << 15) | ((odd >> SIDE) << 31)), first, second


@helper
def _bytes(windows, FIRST: tl.constexpr, PLANES: tl.constexpr):
    """The low bytes of up to four windows in one word."""
    word = windows[FIRST] & 0xFF
    for plane in tl.static_range(FIRST + 1, PLANES if PLANES < FIRST + 4 else FIRST + 4):
        word |= (windows[plane] & 0xFF) << (8 * (plane - FIRST))
    return word


@helper
def _taken(window, even, odd):
    """The next bit of each byte for two rows, where they have one, and the window without them."""
    first = window & even & 0x01010101
    window = choose(even, window >> 1, window)
    second = window & odd & 0x01010101
    return first, second, choose(odd, window >> 1, window)


@helper
def _gathered(even, odd, BIT: tl.constexpr, PLANES: tl.constexpr):
    """The lowest bits of PLANES bytes of two rows, as bits BIT and following of two halves."""
    # bit 0 of byte n goes to bit 24 + n; of `odd`, to bit 28 + n
    both = (even + odd * 16) * 0x01020408
    low = (both >> (24 - BIT)) & ((2**PLANES - 1) << BIT)
    return low | ((both >> (12 - BIT)) & ((2**PLANES - 1) << (BIT + 16)))
