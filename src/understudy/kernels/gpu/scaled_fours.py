"""Weights that are published as codes of four bits with scales, made whole on a GPU: what `kernels.scaled_fours` does, a program
for some columns of each block.

As in `residual`, the bytes are read as they travelled, header included, so that the host need not know what is in them, and
neighbouring parts that came together are decoded in one launch. A lane has two neighbouring rows of a column, which it writes at
once. Products are rounded by themselves: nothing may be fused."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scaled_fours import CENTRE, MOST
from . import INTERPRETED
from .residual import ALIGNED, UNIT, table_of

# columns of a program
COLUMNS = 256 if INTERPRETED else 32
WARPS = 4
MIDDLE, LARGEST = tl.constexpr(CENTRE), tl.constexpr(MOST)


def decode(data: Tensor, out: Tensor, table: Tensor | None = None) -> Tensor:
    """The blocks into `out`, bfloat16 or float16 [nb, K, 64], from the bytes of parts as `codecs.w4` wrote them: of all that
    `table` (of `residual.table_of`) says lie in `data`, or of the one that `data` is."""
    count, columns, _ = out.shape
    if table is None:
        assert data.numel() % ALIGNED == 0, f"a part of {data.numel()} bytes"
        table = table_of([0], [count], data.device)
    assert len(table) == count and out.is_contiguous() and out.dtype in (torch.bfloat16, torch.float16)
    assert data.data_ptr() % 8 == out.data_ptr() % 8 == 0
    runs = triton.cdiv(columns, COLUMNS)
    _decode[(count * runs,)](
        data, out, table, columns, runs, COLUMNS=COLUMNS, HALF=out.dtype == torch.float16, num_warps=WARPS, enable_fp_fusion=False
    )
    return out


@triton.jit(do_not_specialize=["columns", "runs"])
def _decode(data, out, table, columns, runs, COLUMNS: tl.constexpr, HALF: tl.constexpr):
    """Block `program // runs`, COLUMNS of its columns. The part's header: kind, columns that share a scale, the scales' type
    (bfloat16, float16, float32), 1 where there are zero points, and 1 where weights are float16 on the way."""
    program = tl.program_id(0)
    block, first = program // runs, program % runs * COLUMNS
    entry = table + block * 3
    begin, skipped, count = tl.load(entry) * UNIT, tl.load(entry + 1), tl.load(entry + 2)
    # its block within the part
    within = block - skipped
    longs = data.to(tl.pointer_type(tl.int64)) + begin // 8
    column = first + tl.arange(0, COLUMNS)[:, None]
    inside = column < columns
    pair = tl.arange(0, 32)[None, :]
    words = out.to(tl.pointer_type(tl.uint32)) + (block.to(tl.int64) * columns + column) * 32 + pair
    if tl.load(longs) == 0:
        # the weights as they are, behind the header
        kept = data.to(tl.pointer_type(tl.uint32)) + begin // 4 + 16 + (within * columns + column) * 32 + pair
        tl.store(words, tl.load(kept, inside, other=0), inside)
    else:
        sharing, kind, pointed = tl.load(longs + 1), tl.load(longs + 2), tl.load(longs + 3)
        halved = tl.load(longs + 4)
        codes = begin + UNIT
        scales = codes + (count * columns * 32 + UNIT - 1) // UNIT * UNIT
        groups = columns // sharing
        width = tl.where(kind == 2, 4, 2)
        zeros = scales + (count * groups * 64 * width + UNIT - 1) // UNIT * UNIT
        # of rows 0 to 31 the lower half of a byte, of the others the upper one
        row = pair * 2
        both = tl.load(
            data.to(tl.pointer_type(tl.uint16)) + (codes + (within * columns + column) * 32 + row % 32) // 2, inside, other=0
        ).to(tl.int32) >> (row // 32 * 4)
        group = (within * groups + column // sharing) * 64 + row
        lower = _weight(data, both & LARGEST, scales, kind, zeros, pointed, halved, group, inside, HALF)
        upper = _weight(data, (both >> 8) & LARGEST, scales, kind, zeros, pointed, halved, group + 1, inside, HALF)
        tl.store(words, lower | (upper << 16), inside)


@triton.jit
def _weight(data, code, scales, kind, zeros, pointed, halved, group, inside, HALF: tl.constexpr):
    """The bits of a weight, of its code, the places of scales and zero points, and which of them are its own."""
    if kind == 2:
        scale = tl.load(data.to(tl.pointer_type(tl.float32)) + scales // 4 + group, inside, other=0)
    else:
        brief = tl.load(data.to(tl.pointer_type(tl.uint16)) + scales // 2 + group, inside, other=0)
        if kind == 1:
            scale = brief.to(tl.float16, bitcast=True).to(tl.float32)
        else:
            scale = (brief.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    if pointed != 0:
        zero = tl.load(data.to(tl.pointer_type(tl.int8)) + zeros + group, inside, other=0).to(tl.int32)
    else:
        zero = code * 0 + MIDDLE
    number = (code - zero).to(tl.float32) * scale
    number = tl.where(halved != 0, number.to(tl.float16).to(tl.float32), number)
    if HALF:
        bits = number.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
    else:
        # to the nearest bfloat16, of two the even one: none is NaN
        bits = number.to(tl.uint32, bitcast=True)
        bits = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return bits
