"""Other forms of the draft's 4-bit product on a GPU, for `gpu_product` to time beside `kernels/gpu/four_bits.py`.

In `by_columns` each warp of a program has columns and sums of its own, and all of them finish. In `by_bytes` the warps of a program
share out the bytes of each word: each turns a quarter of the codes into numbers, for up to 64 rows at once, and sums are left once
for all warps. SCALED: codes become weights, so that no sums wait for a group's scale. FLAT: what the warps have is one side of a
product, for matrix units that take as much at once. LAST: the last program of a pair finishes it; else `finish` does, in a launch
of its own. `normed` is a norm by itself, for so many rows that each warp would repeat much of it."""

import triton
import triton.language as tl

from understudy.kernels.gpu.four_bits import EIGHT, _added, last_finishes, place_of

# Of two neighbours in a column of words, the bits of 128 + code of the low and the high half of one byte, as two bfloat16s each.
BYTE = tl.constexpr("""{
.reg .b32 pair;
prmt.b32 pair, $2, $3, $4;
lop3.b32 $0, pair, 0x000f000f, 0x43004300, 0xea;
shr.u32 pair, pair, 4;
lop3.b32 $1, pair, 0x000f000f, 0x43004300, 0xea;
}""")
# The same, less 136, times scale, plus zero: weights.
WEIGHTS = tl.constexpr("""{
.reg .b32 pair, low, high, one, middle;
mov.b32 one, 0x3f803f80;
mov.b32 middle, 0xc308c308;
prmt.b32 pair, $2, $3, $4;
lop3.b32 low, pair, 0x000f000f, 0x43004300, 0xea;
shr.u32 pair, pair, 4;
lop3.b32 high, pair, 0x000f000f, 0x43004300, 0xea;
fma.rn.bf16x2 low, low, one, middle;
fma.rn.bf16x2 high, high, one, middle;
fma.rn.bf16x2 $0, low, $6, $8;
fma.rn.bf16x2 $1, high, $10, $12;
}""")


@triton.jit(do_not_specialize=["m", "count0", "count1", "count2", "rows0", "rows1", "rows2", "beside", "apart"])
def by_columns(
    x, codes0, scales0, codes1, scales1, codes2, scales2, picks, norm, bias, other, out, scratch, counters,
    m, count0, count1, count2, rows0, rows1, rows2, beside, apart, epsilon,
    N: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, SHARES: tl.constexpr,
    MATRICES: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, OTHER: tl.constexpr,
    STAGES: tl.constexpr, PARTS: tl.constexpr, LAST: tl.constexpr, SCALED: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """`multiply_pairs` with an axis for warps: share, then warp, is a share of the columns."""
    b, share, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    run, near, first, begin, rows, count = place_of(
        b, codes0, scales0, codes1, scales1, codes2, scales2, count0, count1, count2, rows0, rows1, rows2, COLUMNS, MATRICES, GATED
    )  # fmt: skip
    word, part, k, n = tl.arange(0, 16), tl.arange(0, PARTS), tl.arange(0, STEP), tl.arange(0, N)
    line = tile * N + n
    size: tl.constexpr = N * 129
    pair = tile * tl.num_programs(0) + b
    whole = scratch + (pair * SHARES * PARTS).to(tl.int64) * size
    s0 = tl.zeros([PARTS, 16, N], tl.float32)
    s1, s2, s3, s4, s5, s6, s7, squares = s0, s0, s0, s0, s0, s0, s0, s0
    ones = tl.full([PARTS, 16, STEP], 1.0, tl.bfloat16)
    known = line < m
    wide = near.to(tl.pointer_type(tl.int64))
    for i in tl.range(0, ROUNDS, num_stages=STAGES):
        start = ((share * ROUNDS + i) * PARTS + part) * STEP
        inside = start < COLUMNS
        column = start[:, None] + k[None, :]
        held = known[None, None, :] & inside[:, None, None]
        given = tl.load(x + line[None, None, :] * COLUMNS + column[:, :, None], held, other=0)
        words = tl.load(run[None, :, None] + column[:, None, :] * 8, inside[:, None, None], other=0)
        at = wide[None, :] + (start // GROUP * count * 32)[:, None]
        p02, p46 = tl.load(at, inside[:, None], other=0), tl.load(at + 1, inside[:, None], other=0)
        p13, p57 = tl.load(at + 16, inside[:, None], other=0), tl.load(at + 17, inside[:, None], other=0)
        if NORM:
            weight = tl.load(norm + column, inside[:, None], other=0)
            exact = given.to(tl.float32)
            squares = tl.dot(ones, (exact * exact).to(tl.bfloat16), squares)
            given = (exact * weight[:, :, None]).to(tl.bfloat16)
        c0, c1, c2, c3, c4, c5, c6, c7 = tl.inline_asm_elementwise(
            EIGHT, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [words], is_pure=True, pack=2,
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        )  # fmt: skip
        total = tl.dot(ones, given)
        s0 = _scaled(s0, tl.dot(c0, given), total, p02)
        s1 = _scaled(s1, tl.dot(c1, given), total, p13)
        s2 = _scaled(s2, tl.dot(c2, given), total, p02 >> 32)
        s3 = _scaled(s3, tl.dot(c3, given), total, p13 >> 32)
        s4 = _scaled(s4, tl.dot(c4, given), total, p46)
        s5 = _scaled(s5, tl.dot(c5, given), total, p57)
        s6 = _scaled(s6, tl.dot(c6, given), total, p46 >> 32)
        s7 = _scaled(s7, tl.dot(c7, given), total, p57 >> 32)
    mine = whole + (share * PARTS + part) * size
    spot = mine[:, None, None] + (word * N)[None, :, None] + n[None, None, :]
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
        tl.store(spot + 128 * N, squares, (part[:, None, None] * 0 + word[None, :, None] + n[None, None, :] * 0) < 1)
    if LAST:
        last_finishes(
            counters + pair, whole, bias, other, out, line, m, first, begin, rows, beside, apart, epsilon,
            N, COLUMNS, SHARES, PARTS, GATED, NORM, BIAS, OTHER,
        )  # fmt: skip


@triton.jit(do_not_specialize=["m", "count0", "count1", "count2", "rows0", "rows1", "rows2", "beside", "apart"])
def by_bytes(
    x, codes0, scales0, codes1, scales1, codes2, scales2, picks, norm, bias, other, out, scratch, counters,
    m, count0, count1, count2, rows0, rows1, rows2, beside, apart, epsilon,
    N: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, SHARES: tl.constexpr,
    MATRICES: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, OTHER: tl.constexpr,
    STAGES: tl.constexpr, PARTS: tl.constexpr, LAST: tl.constexpr, SCALED: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """Share number `share` of the columns of one pair of blocks, by four warps: warp p has byte p of each word."""
    b, share, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    run, near, first, begin, rows, count = place_of(
        b, codes0, scales0, codes1, scales1, codes2, scales2, count0, count1, count2, rows0, rows1, rows2, COLUMNS, MATRICES, GATED
    )  # fmt: skip
    word, byte, k, n = tl.arange(0, 16), tl.arange(0, 4), tl.arange(0, STEP), tl.arange(0, N)
    line = tile * N + n
    size: tl.constexpr = N * 129
    pair = tile * tl.num_programs(0) + b
    whole = scratch + (pair * SHARES).to(tl.int64) * size
    if FLAT:
        r = tl.arange(0, 64)
        place = (r // 16 * 32 + r % 16)[:, None] * N + n[None, :]
        first_line = (r[:, None] + n[None, :] * 0) < 1
        low = tl.zeros([64, N], tl.float32)
    else:
        place = ((byte * 32)[:, None, None] + word[None, :, None]) * N + n[None, None, :]
        first_line = (byte[:, None, None] + word[None, :, None] + n[None, None, :] * 0) < 1
        low = tl.zeros([4, 16, N], tl.float32)
    high, squares = low, low
    ones = tl.full([4, 16, STEP], 1.0, tl.bfloat16)
    known = line < m
    # loaded, not computed: only then are words loaded as the matrix units want them
    pick = tl.load(picks + byte)[:, None, None]
    scales = near[None, :] + byte[:, None]
    for i in tl.range(0, ROUNDS, num_stages=STAGES):
        # [1]: a mask must be a block
        start = (share * ROUNDS + i + tl.arange(0, 1)) * STEP
        inside = start < COLUMNS
        column = start + k
        given = tl.load(x + line[None, :] * COLUMNS + column[:, None], known[None, :] & inside[:, None], other=0)
        words = tl.load(run[None, :, None] + column[None, None, :] * 8, inside[:, None, None], other=0)
        at = scales + start // GROUP * count * 64
        p_low, p_high = tl.load(at, inside[None, :], other=0), tl.load(at + 32, inside[None, :], other=0)
        if NORM:
            weight = tl.load(norm + column, inside, other=0)
            exact = given.to(tl.float32)
            squares = tl.dot(ones, tl.broadcast_to((exact * exact).to(tl.bfloat16)[None, :, :], (4, STEP, N)), squares)
            given = (exact * weight[:, None]).to(tl.bfloat16)
        if not FLAT:
            given = tl.broadcast_to(given[None, :, :], (4, STEP, N))
        if SCALED:
            low_scale, low_zero = _twice(p_low)
            high_scale, high_zero = _twice(p_high)
            w_low, w_high = tl.inline_asm_elementwise(
                WEIGHTS, "=r,=r,r,r,r,r,r,r,r,r,r,r,r,r", [words, pick, low_scale, low_zero, high_scale, high_zero], is_pure=True,
                pack=2, dtype=(tl.bfloat16, tl.bfloat16),
            )  # fmt: skip
            if FLAT:
                w_low, w_high = tl.reshape(w_low, (64, STEP)), tl.reshape(w_high, (64, STEP))
            low, high = tl.dot(w_low, given, low), tl.dot(w_high, given, high)
        else:
            c_low, c_high = tl.inline_asm_elementwise(
                BYTE, "=r,=r,r,r,r,r", [words, pick], is_pure=True, pack=2, dtype=(tl.bfloat16, tl.bfloat16)
            )  # fmt: skip
            total = tl.dot(ones, given)
            low = _scaled(low, tl.dot(c_low, given), total, p_low)
            high = _scaled(high, tl.dot(c_high, given), total, p_high)
    spot = whole + share * size + place
    tl.store(spot, low)
    tl.store(spot + 16 * N, high)
    if NORM:
        # all 64 lines are the same
        tl.store(spot + 128 * N, squares, first_line)
    if LAST:
        last_finishes(
            counters + pair, whole, bias, other, out, line, m, first, begin, rows, beside, apart, epsilon,
            N, COLUMNS, SHARES, 1, GATED, NORM, BIAS, OTHER,
        )  # fmt: skip


@triton.jit
def _twice(pair):
    """Scale and zero, bfloat16s side by side in `pair` [4, 16], each twice in a word: [4, 16, 1]."""
    scale, zero = pair & 0xFFFF, (pair >> 16) & 0xFFFF
    return (scale | (scale << 16))[:, :, None], (zero | (zero << 16))[:, :, None]


@triton.jit
def _scaled(sums, product, total, pair):
    """`sums` [w, 16, N] with what 128 + code gave, with scale and zero: the low half of `pair` [w, 16], side by side."""
    pair = pair.to(tl.int32)
    scale = (pair << 16).to(tl.float32, bitcast=True)
    zero = (pair & -65536).to(tl.float32, bitcast=True) - 136.0 * scale
    sums += total * zero[:, :, None]
    return sums + product * scale[:, :, None]


@triton.jit(do_not_specialize=["m", "pairs0", "pairs1", "rows0", "rows1", "rows2", "beside", "apart"])
def finish(
    scratch, bias, other, out, m, pairs0, pairs1, rows0, rows1, rows2, beside, apart, epsilon,
    N: tl.constexpr, COLUMNS: tl.constexpr, SHARES: tl.constexpr, MATRICES: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, OTHER: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """Add the shares of a pair's sums for CODES of a word's codes, and write these outputs, as `_finish` does for all eight."""
    b, tile = tl.program_id(0), tl.program_id(2)
    begin, first, rows = 2 * b, 0, rows0
    if GATED:
        begin = b
    else:
        if MATRICES > 1:  # noqa: SIM102
            if b >= pairs0:
                begin, first, rows = 2 * (b - pairs0), rows0, rows1
        if MATRICES > 2:  # noqa: SIM102
            if b >= pairs0 + pairs1:
                begin, first, rows = 2 * (b - pairs0 - pairs1), rows0 + rows1, rows2
    size: tl.constexpr = N * 129
    whole = scratch + ((tile * tl.num_programs(0) + b) * SHARES).to(tl.int64) * size
    n = tl.arange(0, N)
    line = tile * N + n
    words: tl.constexpr = 8 if GATED else 16
    r = tl.arange(0, CODES * words)
    code, word = tl.program_id(1) * CODES + r // words, r % words
    o = begin * 64 + word // 8 * 64 + code % 2 * 32 + word % 8 * 4 + code // 2
    at = whole + ((code * 16 + word) * N)[:, None] + n[None, :]
    y = _added(at, SHARES, size)
    factor = tl.full([N], 1.0, tl.float32)
    if NORM:
        factor = 1 / tl.sqrt(_added(whole + 128 * N + n, SHARES, size) / COLUMNS + epsilon)
    y *= factor[None, :]
    if BIAS:
        y += tl.load(bias + first + o, o < rows, other=0)[:, None]
    if GATED:
        second = _added(at + 8 * N, SHARES, size) * factor[None, :]
        if BIAS:
            second += tl.load(bias + rows + o, o < rows, other=0)[:, None]
        y = y / (1 + tl.exp(-y)) * second
    held = (line < m)[None, :] & (o < rows)[:, None]
    if OTHER > 0:
        beyond = tl.load(other + line[None, :] * beside + first + o[:, None], held, other=0).to(tl.float32)
        y = y + beyond if OTHER == 1 else beyond / (1 + tl.exp(-beyond)) * y
    tl.store(out + line[None, :] * apart + first + o[:, None], y.to(out.dtype.element_ty), held)


@triton.jit
def normed(x, norm, out, epsilon, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """One row of x [m, COLUMNS], normed."""
    line, k = tl.program_id(0), tl.arange(0, WIDTH)
    exact = tl.load(x + line * COLUMNS + k, k < COLUMNS, other=0).to(tl.float32)
    factor = 1 / tl.sqrt(tl.sum(exact * exact) / COLUMNS + epsilon)
    weight = tl.load(norm + k, k < COLUMNS, other=0)
    tl.store(out + line * COLUMNS + k, (exact * factor * weight).to(out.dtype.element_ty), k < COLUMNS)
