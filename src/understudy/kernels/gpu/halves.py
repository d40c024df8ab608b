"""Two rows in one word of 32 bits, a half each, or a few flags in the bytes of one: what a GPU's lane then does at once.

A half's top bit is its flag, and none of what is done here lets one half carry into the other."""

import triton.language as tl

from . import INTERPRETED, helper

# whether one instruction of the GPU may be named; the interpreter does the same in several steps
NAMED = tl.constexpr(not INTERPRETED)


@helper
def spread(flags):
    """65535 in each half whose flag is set, else 0."""
    if NAMED:
        return tl.inline_asm_elementwise("prmt.b32 $0, $1, $1, 0xBB99;", "=r,r", [flags], tl.uint32, True, 1)
    return ((flags >> 15) & 0x00010001) * 65535


@helper
def interleave(first, second):
    """Four bytes, 255 where a flag is set, else 0: the low half's flag of `first` and of `second`, then the high half's."""
    if NAMED:
        code: tl.constexpr = "prmt.b32 $0, $1, $2, 0xFBD9;"
        return tl.inline_asm_elementwise(code, "=r,r,r", [first, second], tl.uint32, True, 1)
    return ((first >> 15) & 0x00010001) * 255 + ((second >> 15) & 0x00010001) * 65280


@helper
def low_halves(first, second):
    """The low half of `first` below the low half of `second`."""
    return (first & 0xFFFF) | (second << 16)


@helper
def high_halves(first, second):
    """The high half of `first` below the high half of `second`."""
    return (first >> 16) | (second & 0xFFFF0000)


@helper
def choose(mask, ones, zeros):
    """The bits of `ones` where `mask` has ones, else those of `zeros`."""
    return (ones & mask) | (zeros & ~mask)


@helper
def in_order(a, b, c, d):
    """One tensor of four, [..., 2, 2], which a thread holds in this order."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@helper
def byte_of(low, high, N: tl.constexpr):
    """Byte N of eight, in two words."""
    return ((low if N < 4 else high) >> (8 * (N % 4))) & 0xFF
