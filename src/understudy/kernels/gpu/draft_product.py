"""x @ W.T for a few rows x and a weight of 2, 3, 4 or 8 bits, on a GPU: the draft's product. It reads each code once.

The codes go into the matrix units as whole numbers, -8 to 7 for 4 bits, which bfloat16 holds exactly; scale and zero
are applied to the sums of each group. Columns are shared out over programs so that all of the GPU reads, and what they
give is added."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .codes import column_of

# enough to keep the memory of a large GPU busy
PROGRAMS = 528
# rows of x that one call of the kernel takes
MOST_ROWS = 64


class GroupedProduct:
    """The linear map of a weight [rows, K]: codes uint8 [nb, K, 8 * bits], scales bfloat16 [groups, nb * 64, 2].

    Keeps both tensors and copies neither."""

    def __init__(self, codes: Tensor, scales: Tensor, rows: int) -> None:
        assert codes.is_contiguous() and scales.is_contiguous(), "the codes and scales of a whole weight lie together"
        self.codes, self.scales, self.rows = codes, scales.view(torch.int16), rows
        self.count, self.columns = codes.shape[:2]
        self.group = self.columns // scales.shape[0]
        self.step = next(size for size in (64, 32, 16) if self.group % size == 0)
        steps = self.columns // self.step
        # steps of one program
        self.each = -(-steps // max(1, min(steps, PROGRAMS // self.count)))
        self.splits = -(-steps // self.each)

    def __call__(self, x: Tensor) -> Tensor:  # [m, K] -> [m, rows]
        return (
            torch.cat([self._few(part) for part in torch.split(x, MOST_ROWS)]) if len(x) > MOST_ROWS else self._few(x)
        )

    def _few(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty((self.splits, len(x), self.count * 64), dtype=torch.float32, device=x.device)
        bits = self.codes.shape[2] // 8
        few = {} if bits == 4 else {"BITS": bits}
        (_multiply if bits == 4 else _multiply_few)[(self.count, self.splits)](
            x, self.codes, self.scales, y, len(x), self.columns, self.count, M=max(16, triton.next_power_of_2(len(x))),
            GROUP=self.group, STEP=self.step, EACH=self.each, WIDE=INTERPRETED, **few, num_warps=4,
        )  # fmt: skip
        return (y[0] if self.splits == 1 else y.sum(0))[:, : self.rows].to(x.dtype)


@triton.jit(do_not_specialize=["m", "count"])
def _multiply(
    x, codes, scales, y, m, columns, count,
    M: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, EACH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Block `b` of the output, columns `split * EACH * STEP` and so on. Rows 0-31 of a block are low halves, 32-63
    high."""
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line, row = tl.arange(0, M), tl.arange(0, 32)
    width = count.to(tl.int64) * 64
    low = tl.zeros([M, 32], tl.float32)
    high = tl.zeros([M, 32], tl.float32)
    for i in range(EACH):
        first = (split * EACH + i) * STEP
        k = first + tl.arange(0, STEP)
        inside = k < columns
        rows = _rows(x, line, k, m, columns, WIDE)
        packed = tl.load(codes + (b * columns + k[:, None]) * 32 + row[None, :], inside[:, None], other=0)
        at = scales + (first // GROUP) * width * 2 + (b * 64 + row) * 2
        known = row + first < columns + row
        total = tl.sum(rows.to(tl.float32), 1)[:, None]
        part = tl.dot(rows, _whole(packed & 15).to(rows.dtype), input_precision="ieee")
        low += part * _number(at, known)[None, :] + total * _number(at + 1, known)[None, :]
        part = tl.dot(rows, _whole(packed >> 4).to(rows.dtype), input_precision="ieee")
        high += part * _number(at + 64, known)[None, :] + total * _number(at + 65, known)[None, :]
    out = y + (split * m + line[:, None]) * width + b * 64 + row[None, :]
    tl.store(out, low, line[:, None] < m)
    tl.store(out + 32, high, line[:, None] < m)


@triton.jit(do_not_specialize=["m", "count"])
def _multiply_few(
    x, codes, scales, y, m, columns, count,
    M: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, EACH: tl.constexpr, WIDE: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """The same for 2, 3 and 8 bits: a code's bits are picked out for each of the 64 rows, whose bytes lie in the
    cache."""
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line, row = tl.arange(0, M), tl.arange(0, 64)
    width = count.to(tl.int64) * 64
    total = tl.zeros([M, 64], tl.float32)
    for i in range(EACH):
        first = (split * EACH + i) * STEP
        k = first + tl.arange(0, STEP)
        rows = _rows(x, line, k, m, columns, WIDE)
        run = codes + (b * columns + tl.minimum(k, columns - 1)[:, None]) * 8 * BITS
        code = column_of(run, row[None, :], BITS).to(tl.float32) - 2 ** (BITS - 1)
        part = tl.dot(rows, code.to(rows.dtype), input_precision="ieee")
        at = scales + (first // GROUP) * width * 2 + (b * 64 + row) * 2
        known = row + first < columns + row
        sums = tl.sum(rows.to(tl.float32), 1)[:, None]
        total += part * _number(at, known)[None, :] + sums * _number(at + 1, known)[None, :]
    out = y + (split * m + line[:, None]) * width + b * 64 + row[None, :]
    tl.store(out, total, line[:, None] < m)


@triton.jit
def _rows(x, line, k, m, columns, WIDE: tl.constexpr):
    """Columns `k` of each `line` of x [m, columns]; 0 outside it."""
    rows = tl.load(x + line[:, None] * columns + k[None, :], (line[:, None] < m) & (k[None, :] < columns), other=0)
    if WIDE:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def _whole(code):
    """0..15 as -8..7. By way of float32: Triton's interpreter cannot make a bfloat16 of a whole number."""
    return code.to(tl.float32) - 8


@triton.jit
def _number(at, known):
    """float32 numbers from bfloat16 ones that are loaded as 16-bit integers; 0 where not `known`."""
    return (tl.load(at, known, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
