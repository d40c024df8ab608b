"""A few rows times a matrix of codes of 2, 3, 4, 6 or 8 bits, at the speed the codes can be read from memory.

Activations are rounded to int8 in groups of columns (an error of about 0.6%, where 4-bit weights have 8%), so the
inner loop is integer. Blocks of 64 output rows are dealt out to torch's threads by a counter."""

import ctypes
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from . import team
from .compiled import bits_of, compiled, float_of, machine_code
from .descriptor import MATRIX_BYTES, CodedMatrix, DraftRun, coded_matrix, draft_run
from .dot import best
from .int8_rows import to_int8
from .numbers import read, write
from .row_tiles import tiles_dot
from .softmax import gate
from .team import float32_at, int8_at, take, together
from .unpacked_dot import ROOM
from .vector import prefetch

# bytes of codes below which waking the other threads costs more than it saves
ONE_THREAD = 1 << 17
# how many groups of columns before they are used memory is asked for scales
SCALES_AHEAD = 2

carray: Any = numpy_support.carray


_two, _three, _four, _six, _eight = map(tiles_dot, (2, 3, 4, 6, 8))


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
        self.nbytes = codes.nbytes
        # what the addresses point to
        self._kept = (codes, scales)
        self.matrix = CodedMatrix(
            blocks=blocks,
            columns=self.columns,
            step=self.step,
            group=group,
            bits=width // 8,
            codes=codes.data_ptr(),
            scales=scales.data_ptr(),
            outputs=rows,
        )
        self._alone = Joined([self])

    def __call__(self, x: Tensor) -> Tensor:  # [m, K] -> [m, rows]
        return self._alone(x)


@dataclass(frozen=True)
class Norm:
    """A root mean square norm: x / sqrt(mean of its squares + epsilon) * weight."""

    # float32 [columns]
    weight: Tensor
    epsilon: float


class Joined:
    """Several products of the same rows in one run: their results side by side, or silu(first) * second where it is `gated`.

    `norm` comes before the products, `biases` (one each, None: nothing) are added to them. All have one step."""

    def __init__(
        self, products: Sequence[Product], norm: Norm | None = None, biases: Sequence[Tensor | None] = (), gated: bool = False
    ) -> None:
        first = products[0]
        assert all((p.columns, p.step) == (first.columns, first.step) for p in products)
        assert not gated or [p.rows for p in products] == [first.rows] * 2
        self.columns = first.columns
        self.outputs = first.rows if gated else sum(p.rows for p in products)
        # of one row: codes and steps, and the row itself where it is normed
        self._row_bytes = self.columns + self.columns // first.step * 8
        self._own_bytes = self.columns * 4 if norm else 0
        floats = [bias.float().contiguous() if bias is not None else None for bias in biases]
        self._matrices = (CodedMatrix * len(products))(*[p.matrix for p in products])
        for matrix, bias in zip(self._matrices, floats, strict=False):
            matrix.bias = bias.data_ptr() if bias is not None else 0
        self._small = sum(p.nbytes for p in products) < ONE_THREAD
        self._kept = (products, norm, floats)
        self._run = DraftRun(
            count=len(products),
            matrices=ctypes.addressof(self._matrices),
            blocks=sum(p.matrix.blocks for p in products) // (2 if gated else 1),
            outputs=self.outputs,
            gated=gated,
            columns=self.columns,
            step=first.step,
            norm=norm.weight.data_ptr() if norm else 0,
            epsilon=bits_of(norm.epsilon) if norm else 0,
        )

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """x [m, K] -> [m, outputs], with `added` of that shape added."""
        if x.dtype not in (torch.bfloat16, torch.float32):
            return self(x.float()).to(x.dtype)
        x = x.contiguous()
        count = len(x)
        y = torch.empty((count, self.outputs), dtype=x.dtype)
        if not count:
            return y
        scratch = torch.empty(self.room(count), dtype=torch.uint8)
        lead, _ = entries()
        run = self.described(count, x.itemsize)
        run.x = x.data_ptr()
        run.y = y.data_ptr()
        if added is not None:
            assert added.dtype == x.dtype and added.is_contiguous() and added.numel() == y.numel()
            run.added = added.data_ptr()
        run.scratch = scratch.data_ptr()
        lead_of(lead)(ctypes.addressof(run))
        return y

    def room(self, count: int) -> int:
        """Bytes of `DraftRun.scratch` for so many rows."""
        return count * self._row_bytes + self._own_bytes

    def described(self, count: int, itemsize: int) -> DraftRun:
        """The run of `count` rows of elements of so many bytes, by the threads that share it now, but for the addresses of what is
        given, added and made, and of its room."""
        run = DraftRun.from_buffer_copy(self._run)
        run.rows, run.itemsize = count, itemsize
        run.work, run.parallel = entries()[1], team.parallel()
        run.threads = 1 if self._small else team.threads()
        return run


def note() -> str:
    """What a user should know about drafting speed on this machine; empty when there is nothing to say."""
    slow = [] if best(4) else ["Kernels are compiled for a CPU that multiplies no bytes: drafting uses float32, which is slower."]
    return " ".join(slow + [team.note()] * bool(team.note()))


@cache
def entries() -> tuple[int, int]:
    """The addresses of `_lead` and `_work` as machine code."""
    return machine_code(_lead), machine_code(inspect.unwrap(_work))


@cache
def lead_of(address: int) -> Callable[[int], None]:
    """`_lead` to call."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)


def _lead(argument: Any) -> None:
    """Round x, then have all threads take blocks."""
    run = draft_run(argument)
    rows, columns = run.rows, run.columns
    codes = carray(int8_at(run.scratch), (columns // run.step, rows, run.step))
    steps = carray(float32_at(run.scratch + rows * columns), (columns // run.step, rows, 2))
    if run.norm != 0:
        place = run.scratch + rows * columns + columns // run.step * rows * 8
        for r in range(rows):
            _normed(run, r, carray(float32_at(place), columns))
            to_int8(place, 4, codes[:, r : r + 1], steps[:, r : r + 1])
    else:
        to_int8(run.x, run.itemsize, codes, steps)
    if run.parallel == 0 or run.threads == 1:
        _work(argument)
    else:
        together(run.parallel, run.work, argument, run.threads)


@compiled
def _normed(run: Any, r: int, out: Any) -> None:
    """Row r of x after the norm, as float32 [columns]."""
    columns = run.columns
    read(run.x + r * columns * run.itemsize, run.itemsize, out)
    sums = np.zeros(16, np.float32)
    for k in range(0, columns, 16):
        for j in range(16):
            sums[j] += out[k + j] * out[k + j]
    total = np.float32(0)
    for j in range(16):
        total += sums[j]
    factor = np.float32(1) / np.sqrt(total / np.float32(columns) + float_of(run.epsilon))
    weight = carray(float32_at(run.norm), columns)
    for k in range(columns):
        out[k] = out[k] * factor * weight[k]


@compiled
def _work(argument: Any) -> None:
    """Take blocks until none is left. Runs on every thread of the team with the same argument."""
    run = draft_run(argument)
    tiles = np.empty((1 + run.gated, run.rows, 64), np.float32)
    line = np.empty(64, np.float32)
    kept = np.empty(ROOM + 64, np.uint8)
    room = (kept.ctypes.data + 63) // 64 * 64
    while True:
        block = take(argument)
        if block >= run.blocks:
            break
        place, first = run.matrices, 0
        if run.gated == 0:
            while block >= coded_matrix(place).blocks:
                block -= coded_matrix(place).blocks
                first += coded_matrix(place).outputs
                place += MATRIX_BYTES
        # one call for both: numba puts the whole of it wherever it is called
        for m in range(1 + run.gated):
            _block(block, run, coded_matrix(place + m * MATRIX_BYTES), tiles[m], room)
        tile = tiles[0]
        if run.gated != 0:
            for r in range(run.rows):
                gate(tile[r].ctypes.data, tiles[1, r].ctypes.data)
        width = min(coded_matrix(place).outputs - block * 64, 64)
        for r in range(run.rows):
            offset = (r * run.outputs + first + block * 64) * run.itemsize
            if run.added != 0:
                read(run.added + offset, run.itemsize, line[:width])
                for j in range(width):
                    tile[r, j] += line[j]
            write(tile[r, :width], run.y + offset, run.itemsize)
    # numba drops what is not named any more
    kept[0] = 0


@compiled
def _block(b: int, run: Any, matrix: Any, sums: Any, room: int) -> None:
    """sums [rows, 64] = all rows of x times block b of `matrix`, and its bias. `room`: ROOM bytes."""
    count, columns, step, bits = run.rows, matrix.columns, matrix.step, matrix.bits
    sums[:] = np.float32(0)
    tile, first_steps = sums.ctypes.data, run.scratch + count * columns
    for g in range(columns // step):
        codes = matrix.codes + (b * columns + g * step) * 8 * bits
        scales = matrix.scales + (g * step // matrix.group * matrix.blocks + b) * 256
        x, steps = run.scratch + g * count * step, first_steps + g * count * 8
        last = g + 1 == columns // step
        if matrix.group < columns:
            prefetch(scales + SCALES_AHEAD * matrix.blocks * 256, 4)
        if bits == 2:
            _two(codes, x, step, scales, steps, tile, count, room, last)
        elif bits == 3:
            _three(codes, x, step, scales, steps, tile, count, room, last)
        elif bits == 4:
            _four(codes, x, step, scales, steps, tile, count, room, last)
        elif bits == 6:
            _six(codes, x, step, scales, steps, tile, count, room, last)
        else:
            _eight(codes, x, step, scales, steps, tile, count, room, last)
    if matrix.bias != 0:
        width = min(matrix.outputs - b * 64, 64)
        bias = carray(float32_at(matrix.bias + b * 256), width)
        for r in range(count):
            for j in range(width):
                sums[r, j] += bias[j]
