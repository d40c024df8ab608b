"""Rows times exact weights on a GPU: each row's sums are made in one fixed order, whatever other rows there are.

A program multiplies HEIGHT rows by one block of 64 outputs. Rows that are not there are zeros, so one row takes the same
instructions as HEIGHT, and its bits never depend on their number, nor on its place among them. Columns go in order and are never
shared out over programs. Where rows go to experts, a program takes those of one expert, so they are as if no others were there."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED

# rows of one program, by the type they have: the matrix units of a GPU take 64 of two bytes at once
HEIGHT, HEIGHT_FLOAT32 = 64, 16
# columns that are multiplied at once
STEP, STEP_FLOAT32 = 64, 32
BLOCK = 64


def multiply_rows(x: Tensor, blocks: Tensor, out: Tensor) -> None:
    """x [n, K] times `blocks` [nb, K, 64] into `out` [n, nb, 64], whose rows may be apart; sums are float32.

    The weights are taken in the type of x, which must be that of `out`."""
    count, columns = x.shape
    assert blocks.is_contiguous() and blocks.shape[1:] == (columns, BLOCK) and out.shape == (count, len(blocks), BLOCK)
    assert out.stride(1) == BLOCK and out.stride(2) == 1 and out.dtype == x.dtype
    x = x if x.stride(1) == 1 else x.contiguous()
    single = x.dtype == torch.float32
    height = HEIGHT_FLOAT32 if single else HEIGHT
    step = STEP_FLOAT32 if single else STEP
    _multiply_rows[(len(blocks), triton.cdiv(count, height))](
        x, blocks, out, count, columns, x.stride(0), out.stride(0), HEIGHT=height, STEP=step,
        WHOLE=columns % step == 0, WIDE=INTERPRETED or single, num_warps=4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def _multiply_rows(
    x, blocks, out, count, columns, x_line, out_line,
    HEIGHT: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    block, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row, side = tile * HEIGHT + tl.arange(0, HEIGHT), tl.arange(0, 64)
    there = row[:, None] < count
    weights = blocks + block * columns * 64 + side[None, :]
    total = _sums(x + row[:, None] * x_line, weights, there, columns, HEIGHT, STEP, WHOLE, WIDE)
    tl.store(out + row[:, None] * out_line + block * 64 + side[None, :], total.to(out.dtype.element_ty), there)


def multiply_routed(x: Tensor, starts: Tensor, blocks: Tensor, first: int, out: Tensor) -> None:
    """Rows x [m, K], each times the matrix of its expert, into `out` [m, blocks of a matrix, 64].

    Of expert e they are those from starts[e] to starts[e + 1] - 1, on the device. `blocks` [nb, K, 64]: some of those of all
    matrices, one below the other, from block `first` on; what others give is left as it is."""
    count, columns = x.shape
    assert blocks.is_contiguous() and blocks.shape[1:] == (columns, BLOCK) and x.is_contiguous() and out.is_contiguous()
    assert len(out) == count and out.shape[2] == BLOCK and out.dtype == x.dtype and starts.dtype == torch.int32
    if not count:
        return
    single = x.dtype == torch.float32
    height = HEIGHT_FLOAT32 if single else HEIGHT
    step = STEP_FLOAT32 if single else STEP
    # enough for four times as many rows of an expert as each would have if they were spread evenly
    tiles = triton.cdiv(4 * count, (len(starts) - 1) * height)
    _multiply_routed[(len(blocks), min(tiles, triton.cdiv(count, height)))](
        x, starts, blocks, out, first, out.shape[1], columns, columns, out.stride(0), HEIGHT=height, STEP=step,
        WHOLE=columns % step == 0, WIDE=INTERPRETED or single, num_warps=4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first", "each"])
def _multiply_routed(
    x, starts, blocks, out, first, each, columns, x_line, out_line,
    HEIGHT: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block, and every so many of its expert's tiles of rows: none where it has no rows."""
    block = tl.program_id(0).to(tl.int64)
    expert, place = (first + block) // each, (first + block) % each
    begin, end = tl.load(starts + expert), tl.load(starts + expert + 1)
    side = tl.arange(0, 64)
    weights = blocks + block * columns * 64 + side[None, :]
    for start in range(begin + tl.program_id(1) * HEIGHT, end, tl.num_programs(1) * HEIGHT):
        row = (start + tl.arange(0, HEIGHT)).to(tl.int64)
        there = row[:, None] < end
        total = _sums(x + row[:, None] * x_line, weights, there, columns, HEIGHT, STEP, WHOLE, WIDE)
        tl.store(out + row[:, None] * out_line + place * 64 + side[None, :], total.to(out.dtype.element_ty), there)


def multiply_whole(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, K] times a `weight` [N, K] that lies as torch has it, of any N: [n, N], sums in float32."""
    return multiply_heads(x[:, None], weight[None])[:, 0]


def multiply_heads(x: Tensor, weights: Tensor) -> Tensor:
    """x [n, heads, K], each head times its own of `weights` [heads, N, K] that lie as torch has them: [n, heads, N], sums in
    float32. Heads of x may be apart."""
    (count, heads, columns), outputs = x.shape, weights.shape[1]
    x, weights = x if x.stride(2) == 1 else x.contiguous(), weights.contiguous()
    out = x.new_empty(count, heads, outputs)
    single = x.dtype == torch.float32
    height, step = (HEIGHT_FLOAT32, STEP_FLOAT32) if single else (HEIGHT, STEP)
    _multiply_whole[(triton.cdiv(outputs, BLOCK), triton.cdiv(count, height), heads)](
        x, weights, out, count, outputs, columns, x.stride(0), x.stride(1), HEIGHT=height, STEP=step, WIDE=INTERPRETED or single,
        num_warps=4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["count"])
def _multiply_whole(
    x, weights, out, count, outputs, columns, x_line, x_head, HEIGHT: tl.constexpr, STEP: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Some rows and 64 outputs of one head."""
    head, heads = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    row = (tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)).to(tl.int64)
    side, k = tl.program_id(0) * 64 + tl.arange(0, 64), tl.arange(0, STEP)
    there, known = row[:, None] < count, side[None, :] < outputs
    given, weight = x + head * x_head + row[:, None] * x_line, weights + (head * outputs + side[None, :]) * columns
    total = tl.zeros([HEIGHT, 64], tl.float32)
    for first in range(0, columns, STEP):
        column = first + k
        part = tl.load(given + column[None, :], there & (column < columns)[None, :], other=0)
        near = tl.load(weight + column[:, None], known & (column < columns)[:, None], other=0)
        if WIDE:
            total = tl.dot(part.to(tl.float32), near.to(tl.float32), total, input_precision="ieee")
        else:
            total = tl.dot(part, near.to(part.dtype), total)
    into = out + (row[:, None] * heads + head) * outputs + side[None, :]
    tl.store(into, total.to(out.dtype.element_ty), there & known)


@triton.jit
def _sums(
    given, weights, there, columns, HEIGHT: tl.constexpr, STEP: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """[HEIGHT, 64]: rows at `given` that are `there`, times a block of `weights`, columns in order."""
    k = tl.arange(0, STEP)
    total = tl.zeros([HEIGHT, 64], tl.float32)
    for first in range(0, columns, STEP):
        column = first + k
        inside = column < columns
        if WHOLE:
            part = tl.load(given + column[None, :], there, other=0)
            weight = tl.load(weights + column[:, None] * 64)
        else:
            part = tl.load(given + column[None, :], there & inside[None, :], other=0)
            weight = tl.load(weights + column[:, None] * 64, inside[:, None], other=0)
        if WIDE:
            total = tl.dot(part.to(tl.float32), weight.to(tl.float32), total, input_precision="ieee")
        else:
            total = tl.dot(part, weight.to(part.dtype), total)
    return total
