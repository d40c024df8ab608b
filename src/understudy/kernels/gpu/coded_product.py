"""Products of a few rows and codes of 2, 3, 4, 6 or 8 bits in one launch, with a norm before and what comes after.

Each code is read once. It goes into the matrix units as a whole number, which bfloat16 holds exactly; scale and zero are applied
to the sums of each group. A norm's weight multiplies the rows, its factor the sums. Columns are shared out over programs so that
all of the GPU reads. Each leaves its sums in scratch, and the one that comes last to a block of outputs adds them, in one order,
and does what comes after: so results are the same each time."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["m", "count0", "count1", "count2", "rows0", "rows1", "rows2", "beside", "apart"])
def multiply(
    x, codes0, scales0, codes1, scales1, codes2, scales2, shifts, norm, bias, other, out, scratch, counters,
    m, count0, count1, count2, rows0, rows1, rows2, beside, apart, epsilon,
    M: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, PARTS: tl.constexpr,
    SHARES: tl.constexpr, BITS: tl.constexpr, MATRICES: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, OTHER: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Share number `share` of the columns of one block of outputs, for M rows. All of a block's shares leave their sums in
    scratch; the last to come adds them."""
    b, share, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks = tl.num_programs(0)
    block, first, rows, count, codes, scales = matrix_of(
        b, codes0, scales0, codes1, scales1, codes2, scales2, count0, count1, count2, rows0, rows1, rows2, MATRICES, GATED
    )  # fmt: skip
    line = tile * M + tl.arange(0, M)
    sums, squares = share_of(
        x, codes, scales, shifts, norm, line, block.to(tl.int64), share, m, count,
        M, COLUMNS, GROUP, STEP, ROUNDS, PARTS, BITS, NORM, STAGES, WIDE,
    )  # fmt: skip
    o = tl.arange(0, 64)
    if GATED or SHARES > 1:
        sizes = M * 65
        mine = scratch + ((tile * blocks + b) * SHARES + share).to(tl.int64) * sizes
        spot = tl.arange(0, M)[:, None] * 64 + o[None, :]
        tl.store(mine + spot, sums)
        if NORM:
            tl.store(mine + M * 64 + tl.arange(0, M), squares)
        # all of this program's sums must be written before it says so
        tl.debug_barrier()
        group: tl.constexpr = 2 if GATED > 0 else 1
        counter = counters + tile * blocks + b // group
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SHARES * group - 1:
            whole = scratch + (tile * blocks + b // group * group).to(tl.int64) * SHARES * sizes
            y = added(whole, M, SHARES, NORM, COLUMNS, epsilon)
            if BIAS:
                y += _bias(bias, first + block * 64, block * 64, rows)
            if GATED:
                second = added(whole + SHARES * sizes, M, SHARES, NORM, COLUMNS, epsilon)
                if BIAS:
                    second += _bias(bias, rows0 + block * 64, block * 64, rows)
                y = opened(y, GATED) * second
            finish(y, other, out, line, m, first, block, rows, beside, apart, OTHER)
            tl.store(counter, 0)
    else:
        if NORM:
            sums *= _factor(squares, COLUMNS, epsilon)
        if BIAS:
            sums += _bias(bias, first + block * 64, block * 64, rows)
        finish(sums, other, out, line, m, first, block, rows, beside, apart, OTHER)


@triton.jit
def opened(x, GATE: tl.constexpr):
    """silu(x), or where GATE is 2 gelu(x) by its hyperbolic tangent; see `join_form.GateKind`."""
    by = x
    if GATE == 2:
        by = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1 + tl.exp(-by))


@triton.jit
def matrix_of(
    b, codes0, scales0, codes1, scales1, codes2, scales2, count0, count1, count2, rows0, rows1, rows2,
    MATRICES: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Of block `b` of all outputs: its number in its own matrix, the outputs of those before, and the rows, the blocks, the codes
    and the scales of that one. Where outputs are gated, blocks of both matrices take turns."""
    block, first, rows, count = b, 0, rows0, count0
    codes, scales = codes0, scales0
    if GATED:
        block = b // 2
        if b % 2 == 1:
            codes, scales = codes1, scales1
    else:
        # what is known when the kernel is compiled stands alone
        if MATRICES > 1:  # noqa: SIM102
            if b >= count0:
                block, first, rows, count = b - count0, rows0, rows1, count1
                codes, scales = codes1, scales1
        if MATRICES > 2:  # noqa: SIM102
            if b >= count0 + count1:
                block, first, rows, count = b - count0 - count1, rows0 + rows1, rows2, count2
                codes, scales = codes2, scales2
    return block, first, rows, count, codes, scales


@triton.jit
def share_of(
    x, codes, scales, shifts, norm, line, block, share, m, count,
    M: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, PARTS: tl.constexpr,
    BITS: tl.constexpr, NORM: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The sums [M, 64] of one share, outputs in order, and those of the squares of its columns [M]. Every warp takes a step of
    each round."""
    part, k = tl.arange(0, PARTS), tl.arange(0, STEP)
    exact: tl.constexpr = x.dtype.element_ty == tl.float32
    offset: tl.constexpr = 128 + 2 ** (BITS - 1) if BITS < 8 else 0
    middle: tl.constexpr = 0 if exact else offset
    run = codes + block * COLUMNS * (2 * BITS)
    near = scales + block * 64 + _outputs(BITS)[None, :]
    acc = tl.zeros([PARTS, M, 64], tl.float32)
    gram = tl.zeros([PARTS, M, M], tl.float32)
    squares = tl.zeros([PARTS, M], tl.float32)
    ones = tl.full([PARTS, STEP, 8], 1.0, tl.float32 if WIDE else tl.bfloat16)
    known = line < m
    for i in tl.range(0, ROUNDS, num_stages=STAGES):
        begin = ((share * ROUNDS + i) * PARTS + part) * STEP
        inside = begin < COLUMNS
        column = begin[:, None] + k[None, :]
        here = x + line[None, :, None] * COLUMNS + column[:, None, :]
        given = tl.load(here, known[None, :, None] & inside[:, None, None], other=0)
        code = _whole(run, column, inside, shifts, PARTS, STEP, BITS)
        if exact:
            # sums of large numbers that cancel are not exact enough
            code = (code.to(tl.float32) - offset).to(tl.bfloat16)
        pair = tl.load(near + (begin // GROUP)[:, None] * count * 64, inside[:, None], other=0)
        scale = (pair << 16).to(tl.float32, bitcast=True)
        zero = (pair & -65536).to(tl.float32, bitcast=True) - middle * scale
        if NORM:
            if exact or WIDE:
                squares += tl.sum(given.to(tl.float32) * given.to(tl.float32), 2)
            else:
                gram = tl.dot(given, tl.permute(given, (0, 2, 1)), gram)
            weight = tl.load(norm + column, inside[:, None], other=0)
            given = (given.to(tl.float32) * weight[:, None, :]).to(x.dtype.element_ty)
        if WIDE:
            product = tl.dot(given.to(tl.float32), code.to(tl.float32), input_precision="ieee")
            total = tl.sum(given.to(tl.float32), 2)
        elif exact:
            # three bfloat16s hold a float32
            coarse = given.to(tl.bfloat16)
            rest = given - coarse.to(tl.float32)
            fine = rest.to(tl.bfloat16)
            finest = (rest - fine.to(tl.float32)).to(tl.bfloat16)
            product = tl.dot(finest, code, tl.dot(fine, code, tl.dot(coarse, code)))
            total = tl.sum(given, 2)
        else:
            product = tl.dot(given, code)
            total = tl.sum(tl.dot(given, ones), 2) * 0.125
        acc += product * scale[:, None, :] + total[:, :, None] * zero[:, None, :]
    if NORM and not exact and not WIDE:
        same = tl.arange(0, M)[:, None] == tl.arange(0, M)[None, :]
        squares = tl.sum(tl.where(same[None, :, :], gram, 0.0), 2)
    return _in_order(tl.sum(acc, 0), M, BITS), tl.sum(squares, 0)


@triton.jit
def _whole(run, column, inside, shifts, PARTS: tl.constexpr, STEP: tl.constexpr, BITS: tl.constexpr):
    """The codes [PARTS, STEP, 64] of columns `column` as bfloat16, 128 added to those of fewer than 8 bits, 128 taken from the
    others; outputs in the order of `_outputs`."""
    words: tl.constexpr = 16 if BITS == 8 else 8 if BITS > 3 else 4
    each: tl.constexpr = 64 // words
    word = tl.arange(0, words)
    start = run + column[:, :, None] * (2 * BITS)
    held = tl.load(start + word[None, None, :], inside[:, None, None], other=0)
    shift = tl.load(shifts + tl.arange(0, each))[None, None, :, None]
    if BITS == 8:
        code = ((held[:, :, None, :] >> shift) & 255).to(tl.float32) - 128
        return tl.reshape(code, (PARTS, STEP, 64)).to(tl.bfloat16)
    if BITS == 4 or BITS == 6:
        code = (held[:, :, None, :] >> shift) & 15
        if BITS == 6:
            upper = tl.load(start + 8 + (word % 4)[None, None, :], inside[:, None, None], other=0)
            at = tl.load(shifts + 8 + tl.arange(0, each)[:, None] * words + word[None, :])[None, None, :, :]
            code += ((upper[:, :, None, :] >> at) & 3) << 4
    else:
        code = (held[:, :, None, :] >> shift) & 3
        if BITS == 3:
            third = tl.load(start + 4 + (word % 2)[None, None, :], inside[:, None, None], other=0)
            at = tl.load(shifts + 16 + tl.arange(0, each)[:, None] * words + word[None, :])[None, None, :, :]
            code += ((third[:, :, None, :] >> at) & 1) << 2
    # the bits of 128 + code, as bfloat16
    return tl.reshape(code.to(tl.int16) | 0x4300, (PARTS, STEP, 64)).to(tl.bfloat16, bitcast=True)


@triton.jit
def _outputs(BITS: tl.constexpr):
    """[64] which output of a block each column of codes in registers belongs to: code i of word w is number i * words + w."""
    c = tl.arange(0, 64)
    if BITS == 8:
        return c % 16 * 4 + c // 16
    if BITS == 4 or BITS == 6:
        return c // 8 % 2 * 32 + c % 8 * 4 + c // 16
    return c // 4 % 4 * 16 + c % 4 * 4 + c // 16


@triton.jit
def _in_order(sums, M: tl.constexpr, BITS: tl.constexpr):
    """Sums [M, 64] with their outputs in order."""
    if BITS == 8:
        return tl.reshape(tl.permute(tl.reshape(sums, (M, 4, 16)), (0, 2, 1)), (M, 64))
    if BITS == 4 or BITS == 6:
        return tl.reshape(tl.permute(tl.reshape(sums, (M, 4, 2, 8)), (0, 2, 3, 1)), (M, 64))
    return tl.reshape(tl.permute(tl.reshape(sums, (M, 4, 4, 4)), (0, 2, 3, 1)), (M, 64))


@triton.jit
def added(scratch, M: tl.constexpr, SHARES: tl.constexpr, NORM: tl.constexpr, COLUMNS: tl.constexpr, epsilon):
    """The sums [M, 64] of all shares, in their order, after the norm's factor. They are read past the nearest cache."""
    line = tl.arange(0, M)
    spot = scratch + line[:, None] * 64 + tl.arange(0, 64)[None, :]
    total = tl.load(spot, cache_modifier=".cg")
    for s in tl.static_range(1, SHARES):
        total += tl.load(spot + s * M * 65, cache_modifier=".cg")
    if NORM:
        squares = tl.load(scratch + M * 64 + line, cache_modifier=".cg")
        for s in tl.static_range(1, SHARES):
            squares += tl.load(scratch + M * 64 + line + s * M * 65, cache_modifier=".cg")
        total *= _factor(squares, COLUMNS, epsilon)
    return total


@triton.jit
def _factor(squares, COLUMNS: tl.constexpr, epsilon):
    """What the norm multiplies each row [M, 1] by, beside its weight."""
    return (1 / tl.sqrt(squares / COLUMNS + epsilon))[:, None]


@triton.jit
def _bias(bias, at, first, rows):
    o = tl.arange(0, 64)
    return tl.load(bias + at + o, first + o < rows, other=0)[None, :]


@triton.jit
def finish(y, other, out, line, m, first, block, rows, beside, apart, OTHER: tl.constexpr):
    """Write outputs [M, 64] of one block, with what `other` says done first."""
    o = block * 64 + tl.arange(0, 64)
    held = (line < m)[:, None] & (o < rows)[None, :]
    if OTHER > 0:
        beyond = tl.load(other + line[:, None] * beside + first + o[None, :], held, other=0).to(tl.float32)
        y = y + beyond if OTHER == 1 else opened(beyond, OTHER - 1) * y
    tl.store(out + line[:, None] * apart + first + o[None, :], y.to(out.dtype.element_ty), held)
