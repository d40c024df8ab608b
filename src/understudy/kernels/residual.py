"""The residual of whole blocks: `kernels.residual_bits` applied tile by tile. A tile is one block's columns of one
scale group, or of codes of 8 bits, which have one scale a row, some of its columns.

Every tile knows where its bits and its exceptions begin, so tiles can be read in any order, by any number of
threads."""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np import numpy_support
from torch import Tensor

from . import team
from .bins import DENSE, MOST
from .compiled import bits, compiled, machine_code
from .descriptor import DecodeRun, ResidualBlocks, decode_run
from .fours import read_fours
from .residual_bits import tile_reader, tile_writer
from .scaled_fours import read_halved, read_halves, read_scaled
from .team import take, uint16_at, uint32_at
from .trailing import PITCH, apart, narrow_columns
from .vector import LONG, Code, prefetch

# weights below which other threads are not worth waking
SMALL = 1 << 16
# bytes that are read past the end of the stream
SLACK = 16
# columns of a tile of codes of 8 bits; fewer where they do not divide a weight's columns
TILES = (128, 64, 32)
carray: Any = numpy_support.carray

_read_2, _read_3, _read_4, _read_6, _read_8 = map(tile_reader, (2, 3, 4, 6, 8))
_write_2, _write_3, _write_4, _write_6, _write_8 = map(tile_writer, (2, 3, 4, 6, 8))


@dataclass(frozen=True)
class Residual:
    """What codes leave open of a few blocks, in four tensors."""

    # uint8 [nb * K * 8 * DENSE]
    dense: Tensor
    # uint8 [bytes], SLACK of them unused
    stream: Tensor
    # uint32 [tiles + 1, 2]: where each tile's bits and its exceptions begin; last, where they end
    table: Tensor
    # uint16 [exceptions, 2]: the place in the tile (64 * column + row), and the weight's bits
    exceptions: Tensor
    # uint8 [nb, K, 24]: what float16 weights have beyond bfloat16 (`trailing`), which all else is of; None: nothing
    trailing: Tensor | None = None


def tile_columns(columns: int, groups: int, bits: int) -> int:
    """How many columns a tile has, of a weight with so many columns and groups of them that share a scale."""
    if bits < 8:
        return columns // groups
    assert groups == 1, f"codes of 8 bits in {groups} groups"
    return next(size for size in TILES if columns % size == 0)


def encode(blocks: Tensor, codes: Tensor, scales: Tensor) -> Residual:
    """The residual of bfloat16 or float16 `blocks` [nb, K, 64] beside `codes` [nb, K, 8 * bits] and `scales` [groups, nb * 64,
    2]."""
    blocks, trailing = apart(blocks) if blocks.dtype == torch.float16 else (blocks, None)
    count, columns, _ = blocks.shape
    width = codes.shape[2] // 8
    dense = torch.zeros(count * columns * 8 * DENSE[width], dtype=torch.uint8)
    # bytes that a column's share of the stream can have
    most = 8 * (1 + MOST - DENSE[width])
    stream = torch.zeros(count * columns * most + SLACK, dtype=torch.uint8)
    tile = tile_columns(columns, scales.shape[0], width)
    table = torch.zeros((count * (columns // tile) + 1, 2), dtype=torch.int64)
    odd = torch.zeros((count, columns), dtype=torch.int64)
    arrays = [tensor.numpy() for tensor in (dense, stream, table, odd)]
    words = bits(scales.contiguous()).view(np.uint32)[..., 0]
    _encode(bits(blocks.contiguous()), codes.contiguous().numpy(), words, tile, *arrays)
    exceptions = torch.zeros((int(table[-1, 1]), 2), dtype=torch.uint16)
    list_exceptions(bits(blocks.contiguous()), odd.numpy(), tile, exceptions.numpy())
    used = -(-int(table[-1, 0]) // 8) + SLACK
    return Residual(dense, stream[:used], table.to(torch.uint32), exceptions, trailing)


def decode(residual: Residual, codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """Write the exact blocks into `out` [nb, K, 64], of the weights' type, on all of torch's threads."""
    decode_described(described(residual, codes, scales), out)


def decode_described(blocks: ResidualBlocks, out: Tensor) -> None:
    """`decode` of blocks that were described."""
    assert out.is_contiguous()
    run = DecodeRun(blocks=blocks, out=out.data_ptr(), halves=out.dtype == torch.float16)
    team.run(_entry(), run, small=out.numel() < SMALL)


def described(residual: Residual, codes: Tensor, scales: Tensor) -> ResidualBlocks:
    """The blocks that `codes` and `residual` stand for, as kernels take them. They hold as long as all those
    tensors."""
    count, columns, width = codes.shape
    assert codes.is_contiguous() and scales.stride()[1:] == (2, 1)
    tile = tile_columns(columns, scales.shape[0], width // 8)
    return ResidualBlocks(
        count=count,
        columns=columns,
        group=tile,
        # all tiles of a block have the same scales where there is one group of them
        scales_stride=scales.stride(0) * 2 if scales.shape[0] > 1 else 0,
        sharing=1,
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        dense=residual.dense.data_ptr(),
        dense_bytes=8 * DENSE[width // 8],
        stream=residual.stream.data_ptr(),
        table=residual.table.data_ptr(),
        exceptions=residual.exceptions.data_ptr(),
        bits=width // 8,
        trailing=0 if residual.trailing is None else residual.trailing.data_ptr(),
    )


@cache
def _entry() -> int:
    return machine_code(inspect.unwrap(_work))


@compiled
def _work(argument: Any) -> None:
    """Decode blocks until none is left. Runs on every thread of the team with the same argument."""
    run = decode_run(argument)
    blocks = run.blocks
    while True:
        b = take(argument)
        if b >= blocks.count:
            break
        for g in range(blocks.columns // blocks.group):
            first = b * blocks.columns + g * blocks.group
            rebuild(blocks, b, g, run.out + first * 128)
            if run.halves != 0:
                trailing = 0 if blocks.trailing == 0 else blocks.trailing + first * PITCH
                narrow_columns(run.out + first * 128, trailing, blocks.group)


@intrinsic
def _call(typing: Any, function: Any, numbers: Any) -> Any:
    """Call the machine code at `function`, which takes the address of some numbers, with these."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code, (address, own) = Code(context, builder), arguments
        room = code.room(LONG, len(numbers))
        for i in range(len(numbers)):
            code.store(builder.extract_value(own, i), code.at(room, 8 * i), 8)
        kind = ir.FunctionType(ir.VoidType(), [LONG])
        builder.call(builder.inttoptr(address, kind.as_pointer()), [room])
        return context.get_dummy_value()

    return types.void(types.int64, numbers), generate


_read_by: Any = _call


@compiled
def rebuild(blocks: Any, b: int, g: int, out: int) -> None:
    """Group g of block b of `blocks` (`ResidualBlocks`): bfloat16 [group, 64] at the address `out`, of float16 weights what they
    are without `trailing` bits; where `bits` are 7, float32."""
    columns, group, bits = blocks.columns, blocks.group, blocks.bits
    groups = columns // group
    if bits == 0:
        read_fours(blocks.dense + (b * columns + g * group) * 32, blocks.stream + (b * groups + g) * 64, group, out)
        return
    if bits == 1 or bits == 5 or bits == 7:
        own, first = b * (groups // blocks.sharing) + g // blocks.sharing, b * columns + g * group
        zeros = blocks.exceptions + own * 64 if blocks.exceptions != 0 else 0
        codes, scales = blocks.dense + first * 32, blocks.factors + own * blocks.scales_stride
        if bits == 1:
            read_scaled(codes, scales, zeros, blocks.scales_stride, group, out)
        elif bits == 5:
            read_halved(codes, scales, zeros, blocks.scales_stride, group, out)
        else:
            read_halves(codes, scales, zeros, blocks.scales_stride, group, out)
        return
    tiles = blocks.count * groups
    table = carray(uint32_at(blocks.table), (tiles + 1, 2))
    exceptions = carray(uint16_at(blocks.exceptions), (table[tiles, 1], 2))
    tile, first = b * groups + g, b * columns + g * group
    codes, scales = blocks.codes + first * 8 * bits, blocks.scales + g // blocks.sharing * blocks.scales_stride + b * 256
    dense, stream, start = blocks.dense + first * blocks.dense_bytes, blocks.stream, np.int64(table[tile, 0])
    # Scales of the next group lie too far from these for the processor to foresee them.
    if blocks.scales_stride != 0:
        prefetch(scales + blocks.scales_stride, 4)
    # The next tile's begin where this one's end.
    prefetch(blocks.exceptions + np.int64(table[tile + 1, 1]) * 4, 1)
    if blocks.reader != 0:
        step = 4 if blocks.factor_rows == 64 else 0
        per_block = -(-columns // blocks.factor_columns)
        factors = blocks.factors + (b * per_block + g * group // blocks.factor_columns) * blocks.factor_rows * 4
        _read_by(blocks.reader, (codes, scales, dense, stream, start, group, out, factors, step))
    elif bits == 4:
        _read_4(codes, scales, dense, stream, start, group, out)
    elif bits == 3:
        _read_3(codes, scales, dense, stream, start, group, out)
    elif bits == 6:
        _read_6(codes, scales, dense, stream, start, group, out)
    elif bits == 8:
        _read_8(codes, scales, dense, stream, start, group, out)
    else:
        _read_2(codes, scales, dense, stream, start, group, out)
    weights = carray(uint16_at(out), group * 64)
    for e in range(table[tile, 1], table[tile + 1, 1]):
        weights[exceptions[e, 0]] = exceptions[e, 1]


@compiled
def _encode(
    blocks: Any, codes: Any, scales: Any, tile: int, dense: Any, stream: Any, table: Any, odd: Any
) -> None:
    """Fill dense part, stream and table; `odd` int64 [nb, K]: bit j is set where row j of a column is an exception."""
    count, columns, _ = blocks.shape
    groups, rows = scales.shape
    tiles, bits = columns // tile, codes.shape[2] // 8
    place, listed = 0, 0
    for b in range(count):
        for t in range(tiles):
            first, g = b * columns + t * tile, t * groups // tiles
            table[b * tiles + t, 0], table[b * tiles + t, 1] = place, listed
            code, scale = codes.ctypes.data + first * 8 * bits, scales.ctypes.data + (g * rows + b * 64) * 4
            low, bit = dense.ctypes.data + first * (dense.size // (count * columns)), stream.ctypes.data
            weights, mark = blocks.ctypes.data + first * 128, odd.ctypes.data + first * 8
            if bits == 4:
                place = _write_4(code, scale, low, bit, place, tile, weights, mark)
            elif bits == 3:
                place = _write_3(code, scale, low, bit, place, tile, weights, mark)
            elif bits == 6:
                place = _write_6(code, scale, low, bit, place, tile, weights, mark)
            elif bits == 8:
                place = _write_8(code, scale, low, bit, place, tile, weights, mark)
            else:
                place = _write_2(code, scale, low, bit, place, tile, weights, mark)
            for k in range(t * tile, (t + 1) * tile):
                mask = odd[b, k]
                while mask != 0:
                    mask &= mask - 1
                    listed += 1
    table[count * tiles, 0], table[count * tiles, 1] = place, listed


@compiled
def list_exceptions(blocks: Any, odd: Any, tile: int, exceptions: Any) -> None:
    """The exceptions: for each bit of `odd`, its place in its tile and its weight."""
    count, columns, _ = blocks.shape
    n = 0
    for b in range(count):
        for k in range(columns):
            if odd[b, k] != 0:
                for j in range(64):
                    if odd[b, k] >> j & 1:
                        exceptions[n, 0] = (k % tile) * 64 + j
                        exceptions[n, 1] = blocks[b, k, j]
                        n += 1
