"""Rows times exact weights on a GPU: each row's sums are made in one fixed order, whatever other rows there are.

A program multiplies HEIGHT rows by one block of 64 outputs. Rows that are not there are zeros, so one row takes the same
instructions as HEIGHT, and its bits never depend on their number, nor on its place among them. Columns go in order and are never
shared out over programs."""

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
    row, k, side = tile * HEIGHT + tl.arange(0, HEIGHT), tl.arange(0, STEP), tl.arange(0, 64)
    there = row[:, None] < count
    given = x + row[:, None] * x_line
    weights = blocks + block * columns * 64 + side[None, :]
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
    tl.store(out + row[:, None] * out_line + block * 64 + side[None, :], total.to(out.dtype.element_ty), there)
