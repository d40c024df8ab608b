"""Rows times exact bfloat16 weights, blocks of 64 outputs each: as they lie, or rebuilt from codes and residual on the way.

A few columns at a time are rebuilt into the processor's cache and multiply all rows there, so exact weights never pass
through memory. Every output is one sum over the columns in order: its bits depend on its own row and weights alone."""

import ctypes
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from . import team
from .bfdot import columns_dot, has_bfdot, pair_columns, to_brain
from .compiled import compiled
from .residual import DENSE_2, DENSE_3, DENSE_4, SMALL, Residual, described, rebuild
from .team import float32_at, take, uint32_at
from .vector import prefetch

RUN = 128  # columns that are rebuilt before they are multiplied, unless a group has more
HEAD, EACH = 7, 14  # fields of a run, and of each of its operands
carray: Any = numpy_support.carray

_dot_1, _dot_2, _dot_4 = columns_dot(1), columns_dot(2), columns_dot(4)


@cache
def applies(dtype: torch.dtype, columns: int) -> bool:
    """Whether weights of this type and width can be multiplied here, on this machine."""
    return has_bfdot() and dtype == torch.bfloat16 and columns % 2 == 0


class Operand:
    """Some blocks as `multiply` takes them."""

    def __init__(self, fields: Sequence[int], address: int, *kept: object) -> None:
        self.fields, self._kept = (*fields, address), kept  # what the addresses point to
        self.blocks, self.columns, self.group = self.fields[:3]

    @classmethod
    def plain(cls, blocks: Tensor) -> "Operand":
        """Weights [nb, K, 64] as they are."""
        assert blocks.is_contiguous() and blocks.dtype == torch.bfloat16
        return cls([*blocks.shape[:2], 1, *[0] * 8], blocks.data_ptr(), blocks)

    @classmethod
    def packed(cls, residual: Residual, codes: Tensor, scales: Tensor) -> "Operand":
        """The weights that `residual` and `codes` [nb, K, 8 * bits] with their `scales` stand for."""
        return cls(described(residual, codes, scales), 0, residual, codes, scales)


def multiply(tiles: Sequence[Tensor], operands: Sequence[tuple[Operand, int]], out: Tensor) -> None:
    """out[:, first:first + nb] = x times each operand and its first block; out [rows, all blocks, 64], bfloat16.

    x is the first `rows` rows of all `tiles` [any, K] together, bfloat16."""
    rows, columns = out.shape[0], tiles[0].shape[1]
    assert out.is_contiguous() and out.dtype == torch.bfloat16 and sum(map(len, tiles)) >= rows
    assert all(op.columns == columns and first + op.blocks <= out.shape[1] for op, first in operands)
    group = max(op.group for op, _ in operands)
    run = min(columns, max(RUN // group, 1) * group)
    assert all(run % op.group == 0 for op, _ in operands)
    x = _cut(tiles, rows, run)
    fields = [0, len(operands), columns, rows, x.data_ptr(), out.stride(0) * 2, run]
    for op, first in operands:
        fields += [0, *op.fields, out.data_ptr() + first * 128]
    blocks = sum(op.blocks for op, _ in operands)
    team.run(_entry(), (ctypes.c_int64 * len(fields))(*fields), small=blocks * columns * 64 < SMALL)


def _cut(tiles: Sequence[Tensor], rows: int, run: int) -> Tensor:
    """x as [runs of columns, rows, run]: what multiplies together lies together."""
    columns, start = tiles[0].shape[1], 0
    x = torch.empty((-(-columns // run), rows, run), dtype=torch.bfloat16)
    whole = columns // run
    for tile in tiles:
        some = tile[: rows - start]
        part = x[:, start : start + len(some)]
        part[:whole] = some[:, : whole * run].reshape(len(some), whole, run).transpose(0, 1)
        if whole < len(x):
            part[whole, :, : columns - whole * run] = some[:, whole * run :]
        start += len(some)
    return x


@cache
def _entry() -> int:
    return team.machine_code(inspect.unwrap(_work))


@compiled
def _work(argument: Any) -> None:
    """Multiply by blocks until none is left. Runs on every thread of the team with the same argument."""
    head = carray(argument, HEAD)
    every = carray(argument, HEAD + head[1] * EACH)[HEAD:]
    rows, run = head[3], head[6]
    kept = np.empty(rows * 64 + run * 64 + 32, np.float32)
    sums = (kept.ctypes.data + 63) // 64 * 64
    paired = sums + rows * 256
    while True:
        b, o = take(head.ctypes.data), 0
        while o < head[1] and b >= every[o * EACH + 1]:
            b -= every[o * EACH + 1]
            o += 1
        if o == head[1]:
            break
        operand = every[o * EACH : (o + 1) * EACH]
        carray(float32_at(sums), rows * 64)[:] = np.float32(0)
        for k in range(0, head[2], run):
            width = min(head[2] - k, run)
            _make(operand, b, k, width, paired, paired + run * 128)
            _add(head, operand, b, k, width, paired, sums)
        for r in range(rows):
            to_brain(sums + r * 256, operand[13] + r * head[5] + b * 128)


@compiled
def _make(operand: Any, b: int, k: int, width: int, paired: int, rebuilt: int) -> None:
    """`width` columns of block b from k on, side by side in pairs."""
    columns, group, source = operand[2], operand[3], rebuilt
    if operand[12] != 0:
        source = operand[12] + (b * columns + k) * 128
    else:
        for g in range(k // group, (k + width) // group):
            rebuild(operand, b, g, rebuilt + (g * group - k) * 128)
    for pair in range(0, width, 2):
        pair_columns(source + pair * 128, paired + pair * 128)


@compiled
def _add(head: Any, operand: Any, b: int, k: int, width: int, weights: int, sums: int) -> None:
    """sums [rows, 64] += x times these columns. Meanwhile what comes next is fetched from memory."""
    rows, stride = head[3], head[6] * 2
    x = head[4] + k * rows * 2
    r = 0
    while r < rows:
        _fetch_ahead(operand, b, k + width, width, r, min(rows - r, 4), rows)
        if rows - r >= 4:
            _dot_4(weights, width, x + r * stride, stride, sums + r * 256)
            r += 4
        elif rows - r >= 2:
            _dot_2(weights, width, x + r * stride, stride, sums + r * 256)
            r += 2
        else:
            _dot_1(weights, width, x + r * stride, stride, sums + r * 256)
            r += 1


@compiled
def _fetch_ahead(operand: Any, b: int, k: int, width: int, r: int, some: int, rows: int) -> None:
    """Of what `width` columns from k on are made of, the share of rows r to r + some - 1 of all rows."""
    columns, group = operand[2], operand[3]
    width = min(columns - k, width)
    place = b * columns + k
    if width <= 0:
        return
    if operand[12] != 0:
        _fetch(operand[12] + place * 128, width * 2, r, some, rows)
    else:
        bits = operand[11]
        dense = DENSE_4 if bits == 4 else DENSE_3 if bits == 3 else DENSE_2
        _fetch(operand[5] + place * 8 * bits, width * bits // 8, r, some, rows)
        _fetch(operand[7] + place * 8 * dense, width * dense // 8, r, some, rows)
        table = carray(uint32_at(operand[9]), (operand[1] * (columns // group) + 1, 2))
        start, end = table[place // group, 0], table[(place + width) // group, 0]
        _fetch(operand[8] + start // 8, (end - start) // 512 + 1, r, some, rows)


@compiled
def _fetch(start: int, lines: int, r: int, some: int, rows: int) -> None:
    first = lines * r // rows
    prefetch(start + first * 64, lines * (r + some) // rows - first)
