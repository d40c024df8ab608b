"""Float16 weights put together on a GPU: what `kernels.trailing` does, a program for some columns of each block.

`residual` has decoded their upper bits as bfloat16 and put them where the weights shall be. A lane has two neighbouring rows of a
column. As there the bytes are read as they travelled, header included, and neighbouring parts that came together are put together
in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..bins import DENSE
from ..float_dot import SMALLEST
from ..trailing import ABOVE, BELOW, ENDLESS, PITCH, PLACE
from . import INTERPRETED
from .residual import UNIT, checked

# columns of a program
COLUMNS = 256 if INTERPRETED else 32
WARPS = 4
LINE, SHIFT, LEAST = tl.constexpr(PITCH), tl.constexpr(PLACE), tl.constexpr(SMALLEST)
LESS, MORE, INFINITE = tl.constexpr(BELOW), tl.constexpr(ABOVE), tl.constexpr(ENDLESS)


def narrow(data: Tensor, codes: Tensor, scales: Tensor, out: Tensor, table: Tensor | None = None) -> Tensor:
    """`out`, float16 [nb, K, 64], of which `residual.decode` made the upper bits of the same parts, as bfloat16, where they lie; it
    takes what `residual.decode` does."""
    assert out.dtype == torch.float16, f"weights of {out.dtype} have other bits"
    table, bits, _, groups, _ = checked(data, codes, scales, out.view(torch.bfloat16), table)
    columns = out.shape[1]
    runs = triton.cdiv(columns, COLUMNS)
    _narrow[(len(out) * runs,)](
        data, out, table, columns, runs, groups, COLUMNS=COLUMNS, DENSE=DENSE[bits], num_warps=WARPS, enable_fp_fusion=False
    )
    return out


@triton.jit(do_not_specialize=["columns", "runs", "groups"])
def _narrow(data, out, table, columns, runs, groups, COLUMNS: tl.constexpr, DENSE: tl.constexpr):
    """Block `program // runs`, COLUMNS of its columns. The part's header: kind, tiles + 1, stream bytes, exceptions, and bytes of
    trailing bits for a column, or 0."""
    program = tl.program_id(0)
    block, first = program // runs, program % runs * COLUMNS
    entry = table + block * 3
    begin, skipped, count = tl.load(entry) * UNIT, tl.load(entry + 1), tl.load(entry + 2)
    longs = data.to(tl.pointer_type(tl.int64)) + begin // 8
    # Weights that were kept as they are have been copied so.
    if tl.load(longs) != 0:
        streamed, listed, pitch = tl.load(longs + 2), tl.load(longs + 3), tl.load(longs + 4)
        place = begin + UNIT + _padded((count * groups + 1) * 8) + _padded(count * columns * 8 * DENSE)
        place += _padded(streamed) + _padded(listed * 4)
        column = first + tl.arange(0, COLUMNS)[:, None]
        inside = column < columns
        row = tl.arange(0, 32)[None, :] * 2
        words = out.to(tl.pointer_type(tl.uint32)) + (block.to(tl.int64) * columns + column) * 32 + row // 2
        own = data + place + ((block - skipped) * columns + column) * LINE
        whole = column < tl.where(pitch != 0, columns, 0)
        both = tl.load(words, inside, other=0)
        lower = _half(both << 16, _trailing(own, row, whole))
        upper = _half(both & 0xFFFF0000, _trailing(own, row + 1, whole))
        tl.store(words, lower | (upper << 16), inside)


@triton.jit
def _padded(size):
    """Bytes of a section with so many."""
    return (size + UNIT - 1) // UNIT * UNIT


@triton.jit
def _trailing(own, row, whole):
    """Those bits of a row, whose column's lie at `own`; zeros where not `whole`."""
    pairs = tl.load(own + row % 16, whole, other=0).to(tl.uint32) >> (row // 16 * 2).to(tl.uint32)
    thirds = tl.load(own + 16 + row % 8, whole, other=0).to(tl.uint32) >> (row // 8).to(tl.uint32)
    return (pairs & 3) | ((thirds & 1) << 2)


@triton.jit
def _half(upper, trailing):
    """The bits of the float16 that is a float32 with these upper and trailing bits."""
    word = upper | (trailing << SHIFT)
    magnitude = word & 0x7FFFFFFF
    usual = (magnitude - tl.where(magnitude >= INFINITE, MORE, LESS).to(tl.uint32)) >> SHIFT
    # floats from 0.5 on are 2 ** -24 apart, of which a small float16 is a multiple
    tiny = magnitude < LEAST
    number = tl.where(tiny, magnitude, 0).to(tl.float32, bitcast=True)
    small = (number + 0.5).to(tl.uint32, bitcast=True) - 0x3F000000
    return tl.where(tiny, small, usual) | ((word >> 16) & 0x8000)
