"""The residual decoded on a GPU: what `kernels.residual` and `kernels.residual_bits` do, two warps for each tile.

The bytes are read as they travelled, header included, so that the host need not know what is in them. Four lanes share a column's
64 rows, two octets of them each (`octets`). Where a lane's bits of a plane lie in the stream is a running count over the lanes
and columns before it; counts of all planes lie in the bytes of two words. A lane fetches the bits of its rows in one piece for
each plane, and takes them off one by one. Neighbouring parts that came together are decoded in one launch."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..bins import DENSE, WIDER
from ..residual import tile_columns
from . import INTERPRETED, helper
from .bins import bins_of, ends_of
from .halves import byte_of, in_order
from .octets import codes_of, dense_of, passed, weights_of

# columns that are decoded at once, unless a group has fewer; the interpreter is faster with few long steps
COLUMNS = 64 if INTERPRETED else 16
# lanes that share a column, each with the same number of octets; the interpreter does each step of an octet once for all lanes
LANES = tl.constexpr(8 if INTERPRETED else 4)
# warps that decode a tile
WARPS = 2
# registers of a lane: with so few, sixteen warps have room on a processor of the GPU
REGISTERS: int | None = 128
# exceptions that are put back at once
LISTED = 32
# 64-bit words of weights that are copied at once
COPIED = 256
# bytes of which the start of a part, and of each of its sections, is a multiple
ALIGNED = 64
UNIT = tl.constexpr(ALIGNED)


def table_of(starts: Sequence[int], counts: Sequence[int], where: str | torch.device) -> Tensor:
    """What `decode` takes of parts of `counts` neighbouring blocks whose bytes begin at `starts`: for each block where its part
    begins, in units of `ALIGNED` bytes, the part's first block, and how many blocks the part has; int64 [blocks, 3]."""
    assert all(start % ALIGNED == 0 for start in starts), f"parts begin at {list(starts)}"
    rows, first = [], 0
    for start, count in zip(starts, counts, strict=True):
        rows += [(start // ALIGNED, first, count)] * count
        first += count
    return torch.tensor(rows, device=where)


def checked(
    data: Tensor, codes: Tensor, scales: Tensor, out: Tensor, table: Tensor | None
) -> tuple[Tensor, int, int, int, int]:
    """What a kernel is told that decodes parts so, beside what `decode` is given: the table, the bits of a code, the columns of a
    tile, the tiles of a block, and how far the scales of one tile's columns lie from those of the next."""
    count, columns, _ = out.shape
    bits = codes.shape[2] // 8
    group = tile_columns(columns, scales.shape[0], bits)
    groups, stride = columns // group, scales.stride(0) // 2 if scales.shape[0] > 1 else 0
    assert codes.shape == (count, columns, 8 * bits) and codes.is_contiguous() and out.is_contiguous()
    assert scales.shape[1] == count * 64 and scales.stride()[1:] == (2, 1) and scales.stride(0) % 2 == 0
    if table is None:
        assert data.numel() % ALIGNED == 0, f"a part of {data.numel()} bytes"
        table = table_of([0], [count], data.device)
    assert len(table) == count and out.dtype == torch.bfloat16
    assert data.data_ptr() % 8 == codes.data_ptr() % 8 == out.data_ptr() % 8 == scales.data_ptr() % 4 == 0
    return table, bits, group, groups, stride


def decode(data: Tensor, codes: Tensor, scales: Tensor, out: Tensor, table: Tensor | None = None) -> Tensor:
    """The blocks into `out`, bfloat16 [nb, K, 64], from the bytes of parts as `codecs.delta` wrote them: of all that `table` says
    lie in `data`, or of the one that `data` is.

    codes uint8 [nb, K, 8 * bits]; scales bfloat16 [groups, nb * 64, 2], whose rows may be part of longer ones."""
    table, bits, group, groups, stride = checked(data, codes, scales, out, table)
    _decode[(len(out) * groups,)](
        data, codes, scales, out, table, stride, groups,
        group=group, COLUMNS=min(group & -group, COLUMNS), LISTED=LISTED, COPIED=min(16 * (group & -group), COPIED),
        BITS=bits, DENSE=DENSE[bits], WIDER=WIDER[bits], num_warps=WARPS, maxnreg=REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["stride", "groups"])
def _decode(
    data, codes, scales, out, table, stride, groups,
    group: tl.constexpr, COLUMNS: tl.constexpr, LISTED: tl.constexpr, COPIED: tl.constexpr,
    BITS: tl.constexpr, DENSE: tl.constexpr, WIDER: tl.constexpr,
):  # fmt: skip
    """One tile: block `tile // groups`, its columns of one group, of which `table` says in which part it lies. The part's header:
    kind, tiles + 1, stream bytes, exceptions."""
    tile = tl.program_id(0)
    entry = table + (tile // groups) * 3
    begin, skipped, count = tl.load(entry) * UNIT, tl.load(entry + 1), tl.load(entry + 2)
    longs, words = data.to(tl.pointer_type(tl.int64)) + begin // 8, data.to(tl.pointer_type(tl.uint32)) + begin // 4
    kind, streamed = tl.load(longs), tl.load(longs + 2)
    # its place among the tiles of its part
    within = tile - skipped * groups
    spans = words + 16 + within * 2
    place, listed, last = tl.load(spans), tl.load(spans + 1), tl.load(spans + 3)
    # the tile's first column, counted over all blocks, and over those of its part
    first, inside = tile.to(tl.int64) * group, within * group
    blocks = out.to(tl.pointer_type(tl.int64)) + first * 16
    # the weights as they are, behind the header
    if kind == 0:
        for at in range(0, group * 16, COPIED):
            spot = at + tl.arange(0, COPIED)
            tl.store(blocks + spot, tl.load(longs + 8 + inside * 16 + spot))
    else:
        tiles = count * groups
        dense = 64 + ((tiles + 1) * 8 + 63) // 64 * 64
        stream = dense + (tiles * group * 8 * DENSE + 63) // 64 * 64
        sources = (
            codes.to(tl.pointer_type(tl.int64)) + first * BITS,
            longs + dense // 8 + inside * DENSE,
            words + stream // 4 + (place >> 5),
            scales.to(tl.pointer_type(tl.uint32)) + (tile % groups).to(tl.int64) * stride + (tile // groups) * 64,
        )
        _columns(sources, place & 31, blocks.to(tl.pointer_type(tl.uint32)), group, COLUMNS, BITS, DENSE, WIDER)
        if listed < last:
            # what follows overwrites what other lanes have just written
            tl.debug_barrier()
            rest = words + (stream + (streamed + 63) // 64 * 64) // 4
            put_back(rest, listed, last, blocks.to(tl.pointer_type(tl.uint16)), LISTED)


@helper
def put_back(rest, listed, last, blocks, LISTED: tl.constexpr):
    """Write the exceptions from number `listed` to number `last` - 1 over what was decoded."""
    for e in range(listed.to(tl.int64), last.to(tl.int64), LISTED):
        which = e + tl.arange(0, LISTED)
        exception = tl.load(rest + which, mask=which < last, other=0)
        tl.store(blocks + (exception & 0xFFFF), (exception >> 16).to(tl.uint16), mask=which < last)


@helper
def _columns(
    sources, place, blocks, group: tl.constexpr,
    COLUMNS: tl.constexpr, BITS: tl.constexpr, DENSE: tl.constexpr, WIDER: tl.constexpr,
):  # fmt: skip
    """All columns of a tile. `sources`: codes and dense part, in words of 64 bits, one for each bit of a code, or dense bit; the
    stream in words of 32, whose bit `place` is the tile's first; and the scales of its rows."""
    codes, dense, stream, scales = sources
    octets: tl.constexpr = 8 // LANES
    octet = tl.arange(0, LANES)[None, :] * octets
    ends = ends_of(scales + octet * 8, 8 * octets, BITS)
    place = tl.zeros([COLUMNS, LANES], tl.uint32) + place
    for c in range(0, group, COLUMNS):
        column = c + tl.arange(0, COLUMNS)[:, None]
        pairs = ()
        counts = ()
        for u in tl.static_range(octets):
            low, high = codes_of(codes + column * BITS, octet + u, BITS)
            made, count = bins_of(low, high, ends, 8 * u, BITS, DENSE, WIDER)
            pairs = pairs + (made,)
            counts = counts + (count,)
        few, others = counts[0]
        if octets == 2:
            few, others = few + counts[1][0], others + counts[1][1]
        windows, place = _windows(stream, place, few, others, DENSE)
        for u in tl.static_range(octets):
            low, high = dense_of(dense + column * DENSE, octet + u, DENSE)
            if u == 1:
                windows = passed(windows, counts[0], DENSE)
            words = weights_of(pairs[u], low, high, windows, DENSE)
            weights = tl.reshape(in_order(words[0], words[1], words[2], words[3]), [COLUMNS, LANES, 4])
            spot = (column * 32 + (octet + u) * 4)[:, :, None] + tl.arange(0, 4)[None, None, :]
            tl.store(blocks + spot, weights)


@helper
def _windows(stream, place, low, high, DENSE: tl.constexpr):
    """The bits of each lane's rows, a word for each plane, and the place in the stream after these columns. `low`, `high`: how many
    a lane has of each plane. In the stream the sides come first; here they are the last plane."""
    PLANES: tl.constexpr = 11 - DENSE
    before_low, before_high = tl.cumsum(low, 1) - low, tl.cumsum(high, 1) - high
    totals_low, totals_high = tl.sum(low, 1, keep_dims=True), tl.sum(high, 1, keep_dims=True)
    size = byte_of(totals_low, totals_high, 0)
    for plane in tl.static_range(1, PLANES):
        size += byte_of(totals_low, totals_high, plane)
    here = place + tl.cumsum(size, 0) - size
    sides = window_of(stream, here + byte_of(before_low, before_high, PLANES - 1))
    here += byte_of(totals_low, totals_high, PLANES - 1)
    windows = ()
    for plane in tl.static_range(PLANES - 1):
        windows = windows + (window_of(stream, here + byte_of(before_low, before_high, plane)),)
        here += byte_of(totals_low, totals_high, plane)
    return windows + (sides,), place + tl.sum(size, 0, keep_dims=True)


@helper
def window_of(stream, place):
    """The 32 bits of the stream from `place` on."""
    at = stream + (place >> 5).to(tl.int32)
    both = tl.load(at).to(tl.uint64) | (tl.load(at + 1).to(tl.uint64) << 32)
    return (both >> (place & 31).to(tl.uint64)).to(tl.uint32)
