"""The residual of whole blocks: `kernels.planes` applied tile by tile. A tile is one block's columns of one scale group.

Every tile knows where its bits and its exceptions begin, so tiles can be read in any order, by any number of threads."""

import ctypes
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from . import team
from .compiled import bits, compiled
from .planes import DENSE_BYTES, read_tile, write_tile
from .team import take, uint16_at, uint32_at

FIELDS = 12
Fields = ctypes.c_int64 * FIELDS
SMALL = 1 << 16  # weights below which other threads are not worth waking
STREAM_BYTES = 48  # that a column's share of the stream can have at most
SLACK = 16  # bytes that are read past the end of the stream
carray: Any = numpy_support.carray


@dataclass(frozen=True)
class Residual:
    """dense uint8 [nb * K * 40]; stream uint8; table uint32 [tiles + 1, 2]: where a tile's bits and its exceptions begin;
    exceptions uint16 [n, 2]: the place in the tile (64 * column + row), and the weight's bits."""

    dense: Tensor
    stream: Tensor
    table: Tensor
    exceptions: Tensor


def encode(blocks: Tensor, codes: Tensor, scales: Tensor) -> Residual:
    """What `codes` [nb, K, 32] and `scales` [groups, nb * 64, 2] leave open of bfloat16 blocks [nb, K, 64]."""
    count, columns, _ = blocks.shape
    dense = torch.zeros(count * columns * DENSE_BYTES, dtype=torch.uint8)
    stream = torch.zeros(count * columns * STREAM_BYTES + SLACK, dtype=torch.uint8)
    table = torch.zeros((count * scales.shape[0] + 1, 2), dtype=torch.int64)
    odd = torch.zeros((count, columns), dtype=torch.int64)
    arrays = [tensor.numpy() for tensor in (dense, stream, table, odd)]
    words = bits(scales.contiguous()).view(np.uint32)[..., 0]
    _encode(bits(blocks.contiguous()), codes.contiguous().numpy(), words, *arrays)
    exceptions = torch.zeros((int(table[-1, 1]), 2), dtype=torch.uint16)
    _list(bits(blocks.contiguous()), odd.numpy(), scales.shape[0], exceptions.numpy())
    used = -(-int(table[-1, 0]) // 8) + SLACK
    return Residual(dense, stream[:used], table.to(torch.uint32), exceptions)


def decode(residual: Residual, codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """The blocks into `out`, bfloat16 [nb, K, 64], on all of torch's threads."""
    count, columns, _ = codes.shape
    assert codes.is_contiguous() and out.is_contiguous() and scales.stride()[1:] == (2, 1)
    kept = (codes, scales, residual.dense, residual.stream, residual.table, residual.exceptions, out)
    addresses = [tensor.data_ptr() for tensor in kept]
    fields = Fields(0, count, columns, columns // scales.shape[0], scales.stride(0) * 2, *addresses)
    team.run(_entry(), fields, small=out.numel() < SMALL)


@cache
def _entry() -> int:
    return team.machine_code(inspect.unwrap(_work))


@compiled
def _work(argument: Any) -> None:
    """Decode blocks until none is left. Runs on every thread of the team with the same argument."""
    fields = carray(argument, FIELDS)
    count, columns, group = fields[1], fields[2], fields[3]
    groups = columns // group
    table = carray(uint32_at(fields[9]), (count * groups + 1, 2))
    exceptions = carray(uint16_at(fields[10]), (table[count * groups, 1], 2))
    while True:
        b = take(fields.ctypes.data)
        if b >= count:
            break
        for g in range(groups):
            tile, first = b * groups + g, b * columns + g * group
            codes, scales = fields[5] + first * 32, fields[6] + g * fields[4] + b * 256
            dense, stream, out = fields[7] + first * DENSE_BYTES, fields[8], fields[11] + first * 128
            read_tile(codes, scales, dense, stream, np.int64(table[tile, 0]), group, out)
            weights = carray(uint16_at(out), group * 64)
            for e in range(table[tile, 1], table[tile + 1, 1]):
                weights[exceptions[e, 0]] = exceptions[e, 1]


@compiled
def _encode(blocks: Any, codes: Any, scales: Any, dense: Any, stream: Any, table: Any, odd: Any) -> None:
    count, columns, _ = blocks.shape
    groups, rows = scales.shape
    group = columns // groups
    place, listed = 0, 0
    for b in range(count):
        for g in range(groups):
            first = b * columns + g * group
            table[b * groups + g, 0], table[b * groups + g, 1] = place, listed
            place = write_tile(
                codes.ctypes.data + first * 32,
                scales.ctypes.data + (g * rows + b * 64) * 4,
                dense.ctypes.data + first * DENSE_BYTES,
                stream.ctypes.data,
                place,
                group,
                blocks.ctypes.data + first * 128,
                odd.ctypes.data + first * 8,
            )
            for k in range(g * group, (g + 1) * group):
                mask = odd[b, k]
                while mask != 0:
                    mask &= mask - 1
                    listed += 1
    table[count * groups, 0], table[count * groups, 1] = place, listed


@compiled
def _list(blocks: Any, odd: Any, groups: int, exceptions: Any) -> None:
    """The exceptions: for each bit of `odd`, its place in its tile and its weight."""
    count, columns, _ = blocks.shape
    group = columns // groups
    n = 0
    for b in range(count):
        for k in range(columns):
            if odd[b, k] != 0:
                for j in range(64):
                    if odd[b, k] >> j & 1:
                        exceptions[n, 0] = (k % group) * 64 + j
                        exceptions[n, 1] = blocks[b, k, j]
                        n += 1
