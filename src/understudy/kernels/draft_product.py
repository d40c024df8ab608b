"""A few rows times a matrix of codes of 2, 3, 4 or 8 bits, at the speed the codes can be read from memory.

Activations are rounded to int8 in groups of columns (an error of about 0.6%, where 4-bit weights have 8%), so the
inner loop is integer. Blocks of 64 output rows are dealt out to torch's threads by a counter."""

import ctypes
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from . import team
from .compiled import compiled, float_of, word_of
from .descriptor import CodedMatrix, DraftRun, draft_run
from .dot import group_dot, has_vnni
from .team import float32_at, int8_at, take, together, uint16_at, uint32_at
from .vector import prefetch

# bytes of codes below which waking the other threads costs more than it saves
ONE_THREAD = 1 << 17
# how far before it is used memory is asked for what comes next: bytes of codes, and groups of columns
CODES_AHEAD, SCALES_AHEAD = 4096, 2

carray: Any = numpy_support.carray


def _rows_dot(bits: int) -> Any:
    """For kernels: `group_dot` for any number of rows, `count`; `steps` and `out` of the rows lie one after the
    other."""
    one, two, four = (group_dot(bits, rows) for rows in (1, 2, 4))

    def add_group(codes: int, x: int, stride: int, columns: int, scales: int, steps: int, out: int, count: int) -> None:
        r = 0
        # the group's codes stay in the first cache from one tile of rows to the next
        while r < count:
            if count - r >= 4:
                four(codes, x + r * stride, stride, columns, scales, steps + r * 8, out + r * 256)
                r += 4
            elif count - r >= 2:
                two(codes, x + r * stride, stride, columns, scales, steps + r * 8, out + r * 256)
                r += 2
            else:
                one(codes, x + r * stride, stride, columns, scales, steps + r * 8, out + r * 256)
                r += 1

    code: Any = numba.njit(nogil=True, error_model="numpy")(add_group)
    return code


_two, _three, _four, _eight = map(_rows_dot, (2, 3, 4, 8))


class Product:
    """The linear map x -> x @ weight.T for a few rows x, where the weight is codes uint8 [nb, K, 8 * bits].

    `scales` bfloat16 [groups, nb * 64, 2]: (scale, zero) of each output and group of K / groups columns. `rows`: the
    number of outputs that are not padding."""

    def __init__(self, codes: Tensor, scales: Tensor, rows: int) -> None:
        blocks, self.columns, width = codes.shape
        self.rows = rows
        assert codes.is_contiguous() and scales.is_contiguous() and scales.shape[1:] == (blocks * 64, 2)
        group = self.columns // scales.shape[0]
        # columns that share a step of int8
        self.step = next(size for size in (64, 32, 16) if group % size == 0)
        # what the addresses point to
        self._kept = (codes, scales)
        self._matrix = CodedMatrix(
            blocks=blocks,
            columns=self.columns,
            step=self.step,
            group=group,
            bits=width // 8,
            codes=codes.data_ptr(),
            scales=scales.data_ptr(),
            outputs=rows,
        )
        self._small = codes.nbytes < ONE_THREAD

    def __call__(self, x: Tensor) -> Tensor:  # [m, K] -> [m, rows]
        if x.dtype not in (torch.bfloat16, torch.float32):
            return self(x.float()).to(x.dtype)
        x = x.contiguous()
        count = x.shape[0]
        y = torch.empty((count, self.rows), dtype=x.dtype)
        scratch = torch.empty(count * (self.columns + self.columns // self.step * 8), dtype=torch.uint8)
        lead, work = _entries()
        run = DraftRun(
            matrix=self._matrix,
            rows=count,
            x=x.data_ptr(),
            y=y.data_ptr(),
            itemsize=x.dtype.itemsize,
            scratch=scratch.data_ptr(),
            work=work,
            parallel=team.parallel(),
            threads=1 if self._small else torch.get_num_threads(),
        )
        lead(ctypes.addressof(run))
        return y


def note() -> str:
    """What a user should know about drafting speed on this machine; empty when there is nothing to say."""
    slow = [] if has_vnni() else ["This CPU has no AVX-512 VNNI: 4-bit drafting uses portable code, which is slower."]
    return " ".join(slow + [team.note()] * bool(team.note()))


@cache
def _entries() -> tuple[Callable[[int], None], int]:
    """`_lead` to call, and the address of `_work`, as machine code."""
    lead, work = team.machine_code(_lead), team.machine_code(inspect.unwrap(_work))
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(lead), work


def _lead(argument: Any) -> None:
    """Round x, then have all threads take blocks."""
    run = draft_run(argument)
    rows, columns = run.rows, run.matrix.columns
    codes = carray(int8_at(run.scratch), (rows, columns))
    steps = carray(float32_at(run.scratch + rows * columns), (columns // run.matrix.step, rows, 2))
    if run.itemsize == 2:
        _to_int8(carray(uint16_at(run.x), (rows, columns)), 16, codes, steps)
    else:
        _to_int8(carray(uint32_at(run.x), (rows, columns)), 0, codes, steps)
    if run.parallel == 0 or run.threads == 1:
        _work(argument)
    else:
        together(run.parallel, run.work, argument, run.threads)


@compiled
def _to_int8(words: Any, shift: int, codes: Any, steps: Any) -> None:
    """Round each group of each row to a step times -127..127: `codes`; in `steps` the step, and the step times the
    codes' sum.

    `words`: x as its bits, which are the upper ones of a float32 once shifted left by `shift`."""
    width = words.shape[1] // steps.shape[0]
    magic = np.float32(12582912.0)
    for r in range(words.shape[0]):
        for g in range(steps.shape[0]):
            # magnitudes are compared by their bits as integers: the order is the same
            largest: Any = 0
            for k in range(g * width, (g + 1) * width):
                largest = max(largest, np.int64(words[r, k]) << shift & 0x7FFFFFFF)
            step = max(float_of(largest) * np.float32(1 / 127), np.float32(1e-30))
            inverse = np.float32(1) / step
            total = np.int32(0)
            for k in range(g * width, (g + 1) * width):
                code = np.int32((float_of(np.int64(words[r, k]) << shift) * inverse + magic) - magic)
                total += code
                codes[r, k] = code
            steps[g, r, 0] = step
            steps[g, r, 1] = step * np.float32(total)


@compiled
def _work(argument: Any) -> None:
    """Take blocks until none is left. Runs on every thread of the team with the same argument."""
    run = draft_run(argument)
    tile = np.empty((run.rows, 64), np.float32)
    while True:
        block = take(argument)
        if block >= run.matrix.blocks:
            break
        tile[:] = np.float32(0)
        _block(block, run, tile.ctypes.data)
        _give(block, run, tile)


@compiled
def _block(b: int, run: Any, tile: int) -> None:
    """All rows of x times block b, added to the tile."""
    matrix, count = run.matrix, run.rows
    columns, step, bits = matrix.columns, matrix.step, matrix.bits
    first_steps = run.scratch + count * columns
    for g in range(columns // step):
        codes = matrix.codes + (b * columns + g * step) * 8 * bits
        scales = matrix.scales + (g * step // matrix.group * matrix.blocks + b) * 256
        x, steps = run.scratch + g * step, first_steps + g * count * 8
        prefetch(codes + CODES_AHEAD, step * bits // 8)
        if matrix.group < columns:
            prefetch(scales + SCALES_AHEAD * matrix.blocks * 256, 4)
        if bits == 2:
            _two(codes, x, columns, step, scales, steps, tile, count)
        elif bits == 3:
            _three(codes, x, columns, step, scales, steps, tile, count)
        elif bits == 4:
            _four(codes, x, columns, step, scales, steps, tile, count)
        else:
            _eight(codes, x, columns, step, scales, steps, tile, count)


@compiled
def _give(b: int, run: Any, tile: Any) -> None:
    """The tile as the block's columns of y, in its own dtype."""
    outputs, count = run.matrix.outputs, run.rows
    width = min(outputs - b * 64, 64)
    if run.itemsize == 2:
        halves = carray(uint16_at(run.y), (count, outputs))
        for r in range(count):
            for j in range(width):
                word = word_of(tile[r, j])
                halves[r, b * 64 + j] = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    else:
        floats = carray(float32_at(run.y), (count, outputs))
        for r in range(count):
            for j in range(width):
                floats[r, b * 64 + j] = tile[r, j]
