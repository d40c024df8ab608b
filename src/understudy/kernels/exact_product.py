"""Rows times exact weights, blocks of 64 outputs each: as they lie, or rebuilt from codes and residual on the way.

A few columns at a time are rebuilt into the processor's cache and multiply all rows there, so exact weights never pass
through memory. Every output is one sum over the columns in order: its bits depend on its own row and weights alone.
Where the processor has AMX (`amx_dot`), up to 16 rows of bfloat16 take as long as one; elsewhere vectors multiply (`bfdot`). Rows
of float32 multiply by weights that become float32 too (`float_product`)."""

import ctypes
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from . import float_product, team
from .amx_dot import COLUMNS, ROWS, amx_sums, configure, has_amx, release, shapes
from .bfdot import LAID, MOST, ahead, columns_dot, lay_columns, to_brain
from .compiled import FIRST, compiled, machine_code
from .cut_rows import cut_rows
from .descriptor import ExactOperand, ExactRun, exact_operand, exact_run, residual_blocks
from .exact_operand import Operand
from .pack import BLOCK
from .residual import SMALL, rebuild
from .taken_blocks import adding_rows, fetch_ahead, taken
from .team import float32_at

# columns that are rebuilt before they are multiplied, unless a group has more
RUN = 128
# rows of one tile that are multiplied where they lie; more are put together first, since lines of so many rows of a wide
# matrix push each other out of the cache
FEW = 8
carray: Any = numpy_support.carray

_add_rows = adding_rows("bfloat16", MOST, *map(columns_dot, (1, 2, 4, MOST)))
# passes of so many rows multiply by weights as they are
DIRECT = 2 if ahead() else 0
_direct_1, _direct_2 = columns_dot(1, laid=not DIRECT), columns_dot(2, laid=not DIRECT)


def applies(dtype: torch.dtype, columns: int, rows: torch.dtype = torch.bfloat16) -> bool:
    """Whether weights of this type and width can multiply rows of the type `rows` here."""
    able = (torch.bfloat16, torch.float16, torch.float32) if rows == torch.float32 else (rows,)
    return rows in (torch.bfloat16, torch.float32) and dtype in able and columns % 2 == 0


class BlockProduct:
    """Multiplies by `operands`, each with its first block: described once, for any number of products.

    `amx`: whether AMX multiplies, not vectors, which gives other bits; by default where the machine has it, and rows are bfloat16.
    `apart`: each operand multiplies numbers of its own, which lie one operand's after the other's in a row, and does not move; else
    all multiply the same. `rows`: the type of rows and results, see `applies`."""

    def __init__(
        self, operands: Sequence[tuple[Operand, int]], amx: bool | None = None, *, apart: bool = False,
        rows: torch.dtype = torch.bfloat16,
    ) -> None:  # fmt: skip
        self.dtype, self._itemsize = rows, rows.itemsize
        floats = rows == torch.float32
        self.amx = has_amx() and not floats if amx is None else amx
        assert not (self.amx and floats), "AMX multiplies rows of bfloat16"
        assert all(applies(op.dtype, op.columns, rows) for op, _ in operands)
        self.columns = operands[0][0].columns
        group = max(op.group for op, _ in operands)
        self.width = min(self.columns, max(RUN // group, 1) * group)
        # by operand: the first number of a row that it multiplies
        self._given = [place * self.columns * apart for place in range(len(operands))]
        # numbers in a row that is given
        self.given_columns = self._given[-1] + self.columns
        if apart:
            # Rows that are cut have whole runs of columns for each operand, and only the last run may end within a tile of AMX.
            widths = range(self.width // COLUMNS * COLUMNS, 0, -COLUMNS)
            self.width = next((width for width in widths if self.columns % width == 0), self.columns)
        assert all(op.columns == self.columns and self.width % op.group == 0 for op, _ in operands)
        self.end = max(first + op.blocks for op, first in operands)
        self._described = (ExactOperand * len(operands))(
            *[
                ExactOperand(op.description, op.weights, first * BLOCK * self._itemsize, 0, op.line, op.halves)
                for op, first in operands
            ]
        )
        # from one run of columns to the next, in what operands were last told of where their numbers lie
        self._told_bytes = 0
        self._apart = apart
        self._small = sum(op.blocks for op, _ in operands) * self.columns * 64 < SMALL
        self._operands = tuple(op for op, _ in operands)
        # those that may move: none of those that have numbers of their own
        plain = [(told, op) for told, (op, _) in zip(self._described, operands, strict=True) if op.weights]
        self._plain = [] if apart else plain
        self._count, self._address = len(operands), ctypes.addressof(self._described)
        self._kernel = float_product.work if floats else _work_amx if self.amx else _work

    def __call__(self, tiles: Sequence[Tensor], out: Tensor) -> None:
        """out[:, first : first + nb] = x @ weights.T for each operand; out [rows, all blocks, 64].

        x is the first `rows` rows of all `tiles` [any, K], one tile after another; of operands that multiply numbers of their own,
        [any, operands * K]."""
        for told, operand in self._plain:
            # It may have moved.
            told.plain = operand.weights
        rows, blocks, _ = out.shape
        x, width, item = tiles[0], self.width, self._itemsize
        assert x.shape[1] == self.given_columns and blocks >= self.end
        assert out.is_contiguous() and out.dtype == x.dtype == self.dtype
        # rows that are multiplied: whole tiles of them where there are several
        height = -(-rows // ROWS) * ROWS if self.amx and rows > ROWS else rows
        if rows > FEW or x.shape[0] < rows or x.stride() != (self.given_columns, 1):
            x = cut_rows(tiles, rows, height, width)
            row_bytes, run_bytes = width * item, height * width * item
        else:
            row_bytes, run_bytes = self.given_columns * item, width * item
        if self._apart and run_bytes != self._told_bytes:
            self._told_bytes = run_bytes
            for told, first in zip(self._described, self._given, strict=True):
                told.given = first // width * run_bytes
        registers = shapes(min(height, ROWS), self.columns) if self.amx else None
        # in the order of its fields, which takes less time than by their names
        run = ExactRun(
            0, self._count, self._address, self.columns, rows, width, x.data_ptr(), row_bytes, run_bytes,
            out.data_ptr(), blocks * BLOCK * item, height, ctypes.addressof(registers) if registers else 0,
        )  # fmt: skip
        team.run(_entry(self._kernel), run, small=self._small)


@cache
def _entry(kernel: Any) -> int:
    assert has_amx() or kernel is not _work_amx, "this machine has no AMX, or the system keeps it from this process"
    return machine_code(inspect.unwrap(kernel))


@compiled
def _work(argument: Any) -> None:
    """Multiply by blocks until none is left, by vectors. Runs on every thread of the team with the same argument."""
    run = exact_run(argument)
    kept, sums, laid = _room(run)
    while True:
        place, b = taken(argument, run)
        if place == 0:
            break
        operand = exact_operand(place)
        carray(float32_at(sums), run.height * 64)[:] = np.float32(0)
        for k in range(0, run.columns, run.width):
            width = min(run.columns - k, run.width)
            weights = _make(operand, b, k, width, laid, laid + run.width * LAID, run.rows <= DIRECT)
            _add(run, operand, b, k, width, weights, sums)
        _give(run, operand, b, sums)
    # numba drops what is not named any more
    kept[0] = np.float32(0)


@compiled
def _work_amx(argument: Any) -> None:
    """`_work` by AMX."""
    run = exact_run(argument)
    kept, sums, laid = _room(run)
    configure(run.shapes)
    while True:
        place, b = taken(argument, run)
        if place == 0:
            break
        operand = exact_operand(place)
        carray(float32_at(sums), run.height * 64)[:] = np.float32(0)
        for k in range(0, run.columns, run.width):
            width = min(run.columns - k, run.width)
            weights = _make(operand, b, k, width, laid, laid + run.width * LAID, False)
            _add_amx(run, operand, b, k, width, weights, sums)
        _give(run, operand, b, sums)
    release()
    kept[0] = np.float32(0)


@compiled
def _room(run: Any) -> Any:
    """Room of one thread for sums [height, 64], for weights as they are multiplied [width, LAID bytes] and before that: the room,
    and the addresses of the first two in it."""
    kept = np.empty(run.height * 64 + run.width * (LAID + 128) // 4 + 32, np.float32)
    sums = (kept.ctypes.data + 63) // 64 * 64
    return kept, sums, sums + run.height * 256


@compiled
def _give(run: Any, operand: Any, b: int, sums: int) -> None:
    """Put block b's sums in the result."""
    for r in range(run.rows):
        to_brain(sums + r * 256, run.out + operand.out + r * run.out_stride + b * 128)


@compiled
def _make(operand: Any, b: int, k: int, width: int, laid: int, rebuilt: int, direct: bool) -> int:
    """The address of `width` columns of block b, from k on: `laid`, where they are put as `columns_dot` takes them, or if `direct`
    as they are. `rebuilt` is room for them before that."""
    blocks, source = residual_blocks(operand.blocks), rebuilt
    if operand.plain != 0:
        source = operand.plain + (b * blocks.columns + k) * 128
    else:
        group = blocks.group
        for g in range(k // group, (k + width) // group):
            rebuild(blocks, b, g, rebuilt + (g * group - k) * 128)
    if direct:
        return source
    for pair in range(0, width, 2):
        lay_columns(source + pair * 128, laid + pair * LAID)
    return laid


@compiled
def _add(run: Any, operand: Any, b: int, k: int, width: int, weights: int, sums: int) -> None:
    """sums [rows, 64] += x times these columns, while memory is asked for the columns that come next."""
    rows, stride = run.rows, run.row_bytes
    x = run.x + operand.given + k // run.width * run.run_bytes
    if rows <= DIRECT:
        fetch_ahead(operand, b, k + width, width, FIRST, rows, rows)
        if rows == 2:
            _direct_2(weights, width, x, stride, sums)
        else:
            _direct_1(weights, width, x, stride, sums)
        return
    _add_rows(run, operand, b, k, width, weights, sums)


@compiled
def _add_amx(run: Any, operand: Any, b: int, k: int, width: int, weights: int, sums: int) -> None:
    """`_add`, ROWS rows at a time."""
    x = run.x + operand.given + k // run.width * run.run_bytes
    for r in range(0, run.height, ROWS):
        fetch_ahead(operand, b, k + width, width, r, min(run.height - r, ROWS), run.height)
        amx_sums(weights, width, x + r * run.row_bytes, run.row_bytes, sums + r * 256, 256)
