"""The residual decoded on a GPU: what `kernels.residual` and `kernels.residual_bits` do, a program for each tile.

The bytes are read as they travelled, header included, so that the host need not know what is in them. Where a row's
bits lie in the stream is a running count over the rows and columns before it, which costs next to nothing here. The
ends of bins are computed by the same float32 operations in the same order as on the CPU; nothing may be fused."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..bins import DENSE, WIDER
from ..residual import tile_columns
from .codes import column_of

# columns that are decoded at once, unless a group has fewer
COLUMNS = 32
# exceptions that are put back at once
LISTED = 64


def decode(data: Tensor, codes: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """The blocks into `out`, bfloat16 [nb, K, 64], from the bytes of a part as `codecs.delta` wrote them.

    codes uint8 [nb, K, 8 * bits]; scales bfloat16 [groups, nb * 64, 2], whose rows may be part of longer ones."""
    count, columns, _ = out.shape
    bits = codes.shape[2] // 8
    group = tile_columns(columns, scales.shape[0], bits)
    groups, stride = columns // group, scales.stride(0) if scales.shape[0] > 1 else 0
    assert codes.shape == (count, columns, 8 * bits) and codes.is_contiguous() and out.is_contiguous()
    assert scales.shape[1] == count * 64 and scales.stride()[1:] == (2, 1) and group % min(group, COLUMNS) == 0
    assert data.numel() % 64 == 0 and data.data_ptr() % 8 == 0 and out.dtype == torch.bfloat16
    views = [data.view(kind) for kind in (torch.int64, torch.int32, torch.int16)]
    _decode[(count * groups,)](
        data, *views, codes, scales.view(torch.int16), stride, out.view(torch.int16), count, groups,
        group=group, COLUMNS=min(group, COLUMNS), LISTED=LISTED, BITS=bits, DENSE=DENSE[bits], WIDER=WIDER[bits],
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["stride", "count", "groups"])
def _decode(
    data, longs, words, halves, codes, scales, stride, out, count, groups,
    group: tl.constexpr, COLUMNS: tl.constexpr, LISTED: tl.constexpr,
    BITS: tl.constexpr, DENSE: tl.constexpr, WIDER: tl.constexpr,
):  # fmt: skip
    """One tile: block `tile // groups`, its columns of one group. The header: kind, tiles + 1, stream bytes,
    exceptions."""
    tile = tl.program_id(0).to(tl.int64)
    # the tile's first column, counted over all blocks
    first = (tile // groups) * groups * group + (tile % groups) * group
    row = tl.arange(0, 64)
    # the weights as they are, behind the header
    if tl.load(longs) == 0:
        for c in range(0, group, COLUMNS):
            at = (first + c + tl.arange(0, COLUMNS))[:, None] * 64 + row[None, :]
            tl.store(out + at, tl.load(halves + 32 + at))
    else:
        at = (tile % groups) * stride + (tile // groups) * 128 + row * 2
        scale = (tl.load(scales + at).to(tl.int32) << 16).to(tl.float32, bitcast=True)
        zero = (tl.load(scales + at + 1).to(tl.int32) << 16).to(tl.float32, bitcast=True)
        low_end, high_end = zero - scale * (2 ** (BITS - 1) + 0.5), zero - scale * (2 ** (BITS - 1) - 0.5)
        dense = 64 + (tl.load(longs + 1) * 8 + 63) // 64 * 64
        stream = dense + (count.to(tl.int64) * groups * group * 8 * DENSE + 63) // 64 * 64
        place = tl.load(words + 16 + tile * 2).to(tl.int64) & 0xFFFFFFFF
        for c in range(0, group, COLUMNS):
            column = first + c + tl.arange(0, COLUMNS)[:, None]
            whole = column_of(codes + column * 8 * BITS, row[None, :], BITS)
            code = whole.to(tl.float32)
            bottom = _upper(code * scale[None, :] + low_end[None, :])
            top = _upper(code * scale[None, :] + high_end[None, :])
            low, high = bottom & 0x7FFF, top & 0x7FFF
            straddles = ((bottom ^ top) & 0x8000) != 0
            far = tl.maximum(low, high)
            if WIDER > 0:
                far += tl.where(whole == tl.where((top & 0x8000) != 0, 0, 2**BITS - 1), WIDER, 0)
            most = tl.where(straddles, 1023, far - tl.minimum(low, high) + 1)
            # how many rows before this one have a side bit, a bit DENSE, ... a bit 9: counts of eight bits each
            counts = straddles.to(tl.int64)
            for bit in tl.static_range(DENSE, 10):
                counts += (most >= (1 << bit)).to(tl.int64) << (8 * (bit - DENSE + 1))
            before = tl.cumsum(counts, 1) - counts
            totals = tl.sum(counts, 1)
            sizes = totals & 255
            for plane in tl.static_range(1, 11 - DENSE):
                sizes += (totals >> (8 * plane)) & 255
            here = (place + tl.cumsum(sizes, 0) - sizes)[:, None]
            place += tl.sum(sizes, 0)
            below = _bit(data + stream, here + (before & 255), straddles) != 0
            here += (totals & 255)[:, None]
            value = tl.zeros([COLUMNS, 64], tl.int32)
            if DENSE >= 4:
                value += column_of(data + dense + column * 8 * DENSE, row[None, :], 4)
            for bit in tl.static_range(4 if DENSE >= 4 else 0, DENSE):
                run = tl.load(data + dense + column * 8 * DENSE + 8 * bit + row[None, :] // 8).to(tl.int32)
                value += ((run >> (row[None, :] % 8)) & 1) << bit
            for bit in tl.static_range(DENSE, 10):
                place_of = 8 * (bit - DENSE + 1)
                value += _bit(data + stream, here + ((before >> place_of) & 255), most >= (1 << bit)) << bit
                here += ((totals >> place_of) & 255)[:, None]
            end = tl.where(straddles, tl.where(below, low, high), far)
            sign = tl.where(below, top ^ 0x8000, top) & 0x8000
            tl.store(out + column * 64 + row[None, :], ((end + 1 - value) | sign).to(tl.int16))
        # what follows overwrites what other threads have just written
        tl.debug_barrier()
        listed = (stream + (tl.load(longs + 2) + 63) // 64 * 64) // 2
        _put_back(words + 17 + tile * 2, halves + listed, out + first * 64, LISTED)


@triton.jit
def _put_back(bounds, listed, out, LISTED: tl.constexpr):
    """Write a tile's exceptions over what was decoded. `bounds`: the number of its first one; two further, of the last + 1."""
    e = tl.load(bounds).to(tl.int64) & 0xFFFFFFFF
    last = tl.load(bounds + 2).to(tl.int64) & 0xFFFFFFFF
    while e < last:
        which = e + tl.arange(0, LISTED)
        spot = tl.load(listed + which * 2, mask=which < last, other=0).to(tl.int64) & 0xFFFF
        weight = tl.load(listed + which * 2 + 1, mask=which < last, other=0)
        tl.store(out + spot, weight, mask=which < last)
        e += LISTED


@triton.jit
def _upper(number):
    """The upper 16 bits of a float32."""
    return (number.to(tl.int32, bitcast=True) >> 16) & 0xFFFF


@triton.jit
def _bit(stream, place, wanted):
    """The bit at each `place` of the stream where it is `wanted`, else 0."""
    byte = tl.load(stream + (place >> 3), mask=wanted, other=0).to(tl.int32)
    return (byte >> (place & 7).to(tl.int32)) & 1
