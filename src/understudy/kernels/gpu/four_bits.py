"""A share of the draft's product of bfloat16 rows and codes of 4 bits, with one instruction a code.

A word of 32 bits holds eight codes of one column. Words are loaded as the matrix units want their second factor, so that a thread
has neighbours of a column side by side, and its codes become numbers by their bits alone. So each of a word's eight codes has sums
of its own, which are put in order at the end."""

import triton
import triton.language as tl

# Of two neighbours in a column of 32-bit words with eight codes of 4 bits each: the bits of 128 + code, as two bfloat16s, for each
# of the eight, low halves of bytes before high ones. One instruction a code; the interpreter knows none of it.
EIGHT = tl.constexpr("""{
.reg .b32 pair;
prmt.b32 pair, $8, $9, 0x4400;
lop3.b32 $0, pair, 0x000f000f, 0x43004300, 0xea;
shr.u32 pair, pair, 4;
lop3.b32 $1, pair, 0x000f000f, 0x43004300, 0xea;
prmt.b32 pair, $8, $9, 0x5511;
lop3.b32 $2, pair, 0x000f000f, 0x43004300, 0xea;
shr.u32 pair, pair, 4;
lop3.b32 $3, pair, 0x000f000f, 0x43004300, 0xea;
prmt.b32 pair, $8, $9, 0x6622;
lop3.b32 $4, pair, 0x000f000f, 0x43004300, 0xea;
shr.u32 pair, pair, 4;
lop3.b32 $5, pair, 0x000f000f, 0x43004300, 0xea;
prmt.b32 pair, $8, $9, 0x7733;
lop3.b32 $6, pair, 0x000f000f, 0x43004300, 0xea;
shr.u32 pair, pair, 4;
lop3.b32 $7, pair, 0x000f000f, 0x43004300, 0xea;
}""")


@triton.jit
def share_of_four(
    x, codes, scales, norm, line, block, share, m, count,
    M: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, PARTS: tl.constexpr,
    NORM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The sums [M, 64] of one share, and those of the squares of its columns [M], as `coded_product` has them."""
    part, k, word = tl.arange(0, PARTS), tl.arange(0, STEP), tl.arange(0, 8)
    run = codes + block * COLUMNS * 8
    s0 = tl.zeros([PARTS, M, 8], tl.float32)
    s1, s2, s3, s4, s5, s6, s7 = s0, s0, s0, s0, s0, s0, s0
    gram = tl.zeros([PARTS, M, M], tl.float32)
    ones = tl.full([PARTS, STEP, 8], 1.0, tl.bfloat16)
    known = line < m
    for i in tl.range(0, ROUNDS, num_stages=STAGES):
        begin = ((share * ROUNDS + i) * PARTS + part) * STEP
        inside = begin < COLUMNS
        column = begin[:, None] + k[None, :]
        here = x + line[None, :, None] * COLUMNS + column[:, None, :]
        given = tl.load(here, known[None, :, None] & inside[:, None, None], other=0)
        words = tl.load(run + column[:, :, None] * 8 + word[None, None, :], inside[:, None, None], other=0)
        if NORM:
            gram = tl.dot(given, tl.permute(given, (0, 2, 1)), gram)
            weight = tl.load(norm + column, inside[:, None], other=0)
            given = (given.to(tl.float32) * weight[:, None, :]).to(tl.bfloat16)
        c0, c1, c2, c3, c4, c5, c6, c7 = tl.inline_asm_elementwise(
            EIGHT, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [words], is_pure=True, pack=2,
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        )  # fmt: skip
        total = tl.sum(tl.dot(given, ones), 2) * 0.125
        # word w holds outputs 4 * w to 4 * w + 3 in the low halves of its bytes, and those 32 further in the high ones
        at = scales + (begin // GROUP)[:, None] * count * 64 + block * 64 + word[None, :] * 4
        s0 = _scaled(s0, tl.dot(given, c0), total, at, inside)
        s1 = _scaled(s1, tl.dot(given, c1), total, at + 32, inside)
        s2 = _scaled(s2, tl.dot(given, c2), total, at + 1, inside)
        s3 = _scaled(s3, tl.dot(given, c3), total, at + 33, inside)
        s4 = _scaled(s4, tl.dot(given, c4), total, at + 2, inside)
        s5 = _scaled(s5, tl.dot(given, c5), total, at + 34, inside)
        s6 = _scaled(s6, tl.dot(given, c6), total, at + 3, inside)
        s7 = _scaled(s7, tl.dot(given, c7), total, at + 35, inside)
    low = tl.join(tl.join(s0, s2), tl.join(s4, s6))
    high = tl.join(tl.join(s1, s3), tl.join(s5, s7))
    # [PARTS, M, words, high bit of the byte, low bit, half]
    sums = tl.sum(tl.reshape(tl.permute(tl.join(low, high), (0, 1, 5, 2, 4, 3)), (PARTS, M, 64)), 0)
    same = tl.arange(0, M)[:, None] == tl.arange(0, M)[None, :]
    return sums, tl.sum(tl.sum(tl.where(same[None, :, :], gram, 0.0), 2), 0)


@triton.jit
def _scaled(sums, product, total, at, inside):
    """`sums` with what 128 + code gave, with scale and zero: those of `at` [PARTS, 8], side by side in one integer."""
    pair = tl.load(at, inside[:, None], other=0)
    scale = (pair << 16).to(tl.float32, bitcast=True)
    zero = (pair & -65536).to(tl.float32, bitcast=True) - 136.0 * scale
    sums += total[:, :, None] * zero[:, None, :]
    return sums + product * scale[:, None, :]
