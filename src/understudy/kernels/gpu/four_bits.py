"""The draft's products of bfloat16 rows and codes of 4 bits on a GPU: one launch for up to three matrices, the norm before them and
what comes after.

A word of 32 bits holds eight codes of one column. The words of two blocks of outputs are one side of the matrix units, 16 high,
and the rows of x the other, so that few rows fill them. Words are loaded as the matrix units want them: a thread has neighbours of
a column side by side, and its codes become numbers by their bits alone, one instruction a code. So each of a word's eight codes
has sums of its own, which are put in order only as results are written. A program is one warp: none waits for another."""

import triton
import triton.language as tl

from .coded_product import matrix_of, opened

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


@triton.jit(do_not_specialize=["m", "count0", "count1", "count2", "rows0", "rows1", "rows2", "beside", "apart"])
def multiply_pairs(
    x, codes0, scales0, codes1, scales1, codes2, scales2, norm, bias, other, out, scratch, counters,
    m, count0, count1, count2, rows0, rows1, rows2, beside, apart, epsilon,
    N: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, SHARES: tl.constexpr,
    MATRICES: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, OTHER: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Share number `share` of the columns of one pair of blocks, for N rows: two neighbours of one matrix, or where outputs are
    gated the same block of both. All of a pair's shares leave their sums in scratch; the last to come adds them."""
    b, share, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    run, near, first, begin, rows, count = place_of(
        b, codes0, scales0, codes1, scales1, codes2, scales2, count0, count1, count2, rows0, rows1, rows2, COLUMNS, MATRICES, GATED
    )  # fmt: skip
    line = tile * N + tl.arange(0, N)
    size: tl.constexpr = N * 129
    pair = tile * tl.num_programs(0) + b
    whole = scratch + (pair * SHARES).to(tl.int64) * size
    share_of_pair(
        x, run, near, norm, whole + share * size, line, share, m, count,
        N, COLUMNS, GROUP, STEP, ROUNDS, NORM, STAGES,
    )  # fmt: skip
    last_finishes(
        counters + pair, whole, bias, other, out, line, m, first, begin, rows, beside, apart, epsilon,
        N, COLUMNS, SHARES, 1, GATED, NORM, BIAS, OTHER,
    )  # fmt: skip


@triton.jit
def place_of(
    b, codes0, scales0, codes1, scales1, codes2, scales2, count0, count1, count2, rows0, rows1, rows2,
    COLUMNS: tl.constexpr, MATRICES: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Of pair `b`: its words [16] and their scales in a column, the outputs before its matrix, its first block there, and that
    matrix's rows and blocks."""
    word = tl.arange(0, 16)
    if GATED:
        begin, first, rows, count = b, 0, rows0, count0
        one = b.to(tl.int64)
        # the compiler does not see that both begin at 16 bytes, and would load each word by itself
        run = tl.multiple_of(tl.where(word < 8, codes0 + one * COLUMNS * 8, codes1 + one * COLUMNS * 8), 16)
        near = tl.where(word < 8, scales0 + one * 64, scales1 + one * 64)
    else:
        two, first, rows, _, codes, scales = matrix_of(
            b, codes0, scales0, codes1, scales1, codes2, scales2, (count0 + 1) // 2, (count1 + 1) // 2, (count2 + 1) // 2,
            rows0, rows1, rows2, MATRICES, False,
        )  # fmt: skip
        begin, count = 2 * two, (rows + 63) // 64
        # an odd block is its own neighbour, which writes nothing
        one = tl.where(word < 8, begin, tl.minimum(begin + 1, count - 1)).to(tl.int64)
        run, near = codes + one * COLUMNS * 8, scales + one * 64
    return run + word % 8, near + word % 8 * 4, first, begin, rows, count


@triton.jit
def last_finishes(
    counter, whole, bias, other, out, line, m, first, begin, rows, beside, apart, epsilon,
    N: tl.constexpr, COLUMNS: tl.constexpr, SHARES: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """Say that this program's sums are there. The last of a pair's SHARES programs adds all, PARTS from each, and writes
    outputs."""
    # all of this program's sums must be written before it says so
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SHARES - 1:
        _finish(
            whole, bias, other, out, line, m, first, begin, rows, beside, apart, epsilon,
            N, COLUMNS, SHARES * PARTS, GATED, NORM, BIAS, OTHER,
        )  # fmt: skip
        tl.store(counter, 0)


@triton.jit
def share_of_pair(
    x, run, near, norm, mine, line, share, m, count,
    N: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, NORM: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Leave in `mine` the sums [8, 16, N] of one share, for each code of a word and each word, and those of the squares of its
    columns [N]."""
    k, n, word = tl.arange(0, STEP), tl.arange(0, N), tl.arange(0, 16)
    s0 = tl.zeros([16, N], tl.float32)
    s1, s2, s3, s4, s5, s6, s7, squares = s0, s0, s0, s0, s0, s0, s0, s0
    ones = tl.full([16, STEP], 1.0, tl.bfloat16)
    known = line < m
    # two outputs' scales and zeros at once
    wide = near.to(tl.pointer_type(tl.int64))
    for i in tl.range(0, ROUNDS, num_stages=STAGES):
        # [1]: a mask must be a block
        begin = (share * ROUNDS + i + tl.arange(0, 1)) * STEP
        inside = begin < COLUMNS
        column = begin + k
        given = tl.load(x + line[None, :] * COLUMNS + column[:, None], known[None, :] & inside[:, None], other=0)
        words = tl.load(run[:, None] + column[None, :] * 8, inside[:, None], other=0)
        at = wide + begin // GROUP * count * 32
        p02, p46 = tl.load(at, inside, other=0), tl.load(at + 1, inside, other=0)
        p13, p57 = tl.load(at + 16, inside, other=0), tl.load(at + 17, inside, other=0)
        if NORM:
            weight = tl.load(norm + column, inside, other=0)
            exact = given.to(tl.float32)
            squares = tl.dot(ones, (exact * exact).to(tl.bfloat16), squares)
            given = (exact * weight[:, None]).to(tl.bfloat16)
        c0, c1, c2, c3, c4, c5, c6, c7 = tl.inline_asm_elementwise(
            EIGHT, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [words], is_pure=True, pack=2,
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        )  # fmt: skip
        total = tl.dot(ones, given)
        # word w holds outputs 4 * w to 4 * w + 3 in the low halves of its bytes, and those 32 further in the high ones
        s0 = _scaled(s0, tl.dot(c0, given), total, p02)
        s1 = _scaled(s1, tl.dot(c1, given), total, p13)
        s2 = _scaled(s2, tl.dot(c2, given), total, p02 >> 32)
        s3 = _scaled(s3, tl.dot(c3, given), total, p13 >> 32)
        s4 = _scaled(s4, tl.dot(c4, given), total, p46)
        s5 = _scaled(s5, tl.dot(c5, given), total, p57)
        s6 = _scaled(s6, tl.dot(c6, given), total, p46 >> 32)
        s7 = _scaled(s7, tl.dot(c7, given), total, p57 >> 32)
    spot = mine + (word * N)[:, None] + n[None, :]
    tl.store(spot, s0)
    tl.store(spot + 16 * N, s1)
    tl.store(spot + 32 * N, s2)
    tl.store(spot + 48 * N, s3)
    tl.store(spot + 64 * N, s4)
    tl.store(spot + 80 * N, s5)
    tl.store(spot + 96 * N, s6)
    tl.store(spot + 112 * N, s7)
    if NORM:
        # all 16 lines are the same
        tl.store(spot + 128 * N, squares, (word < 1)[:, None] & (n < N)[None, :])


@triton.jit
def _scaled(sums, product, total, pair):
    """`sums` with what 128 + code gave, with scale and zero: the low half of `pair` [16], side by side."""
    pair = pair.to(tl.int32)
    scale = (pair << 16).to(tl.float32, bitcast=True)
    zero = (pair & -65536).to(tl.float32, bitcast=True) - 136.0 * scale
    sums += total * zero[:, None]
    return sums + product * scale[:, None]


@triton.jit
def _finish(
    whole, bias, other, out, line, m, first, begin, rows, beside, apart, epsilon,
    N: tl.constexpr, COLUMNS: tl.constexpr, SHARES: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr,
    OTHER: tl.constexpr,
):  # fmt: skip
    """Add the sums of all shares, and write the outputs of blocks `begin` and the next, with what `other` says done first; gated,
    those of one block."""
    size: tl.constexpr = N * 129
    n = tl.arange(0, N)
    factor = tl.full([N], 1.0, tl.float32)
    if NORM:
        factor = 1 / tl.sqrt(_added(whole + 128 * N + n, SHARES, size) / COLUMNS + epsilon)
    words: tl.constexpr = 8 if GATED else 16
    r = tl.arange(0, 8 * words)
    code, word = r // words, r % words
    o = begin * 64 + word // 8 * 64 + code % 2 * 32 + word % 8 * 4 + code // 2
    at = whole + ((code * 16 + word) * N)[:, None] + n[None, :]
    y = _added(at, SHARES, size) * factor[None, :]
    if BIAS:
        y += tl.load(bias + first + o, o < rows, other=0)[:, None]
    if GATED:
        second = _added(at + 8 * N, SHARES, size) * factor[None, :]
        if BIAS:
            second += tl.load(bias + rows + o, o < rows, other=0)[:, None]
        y = opened(y, GATED) * second
    held = (line < m)[None, :] & (o < rows)[:, None]
    if OTHER > 0:
        beyond = tl.load(other + line[None, :] * beside + first + o[:, None], held, other=0).to(tl.float32)
        y = y + beyond if OTHER == 1 else opened(beyond, OTHER - 1) * y
    tl.store(out + line[None, :] * apart + first + o[:, None], y.to(out.dtype.element_ty), held)


@triton.jit
def _added(at, SHARES: tl.constexpr, APART: tl.constexpr):
    """The sums of all shares, in their order. They are read past the nearest cache."""
    total = tl.load(at, cache_modifier=".cg")
    for s in tl.static_range(1, SHARES):
        total += tl.load(at + s * APART, cache_modifier=".cg")
    return total
