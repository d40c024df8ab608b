"""A few rows times a matrix of codes of 2, 3, 4, 6 or 8 bits, at the speed the codes can be read from memory.

Activations are rounded to int8 in groups of columns (an error of about 0.6%, where 4-bit weights have 8%), so the
inner loop is integer. Blocks of 64 output rows are dealt out to torch's threads by a counter."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from . import team
from .compiled import bits_of, compiled, float_of, machine_code
from .dot import best
from .draft_descriptors import MATRIX_BYTES, CodedMatrix, DraftRun, coded_matrix, draft_run
from .int8_rows import to_int8
from .join_form import PLAIN, GateKind, JoinForm, halves
from .numbers import read, squares, write
from .row_tiles import tiles_dot
from .softmax import gelu_gate, silu_gate
from .team import float32_at, int8_at, int64_at, take, together
from .unpacked_dot import ROOM
from .vector import prefetch

# bytes of codes below which waking the other threads costs more than it saves
ONE_THREAD = 1 << 17
# how many groups of columns before they are used memory is asked for scales
SCALES_AHEAD = 2

SILU = int(GateKind.SILU)

carray: Any = numpy_support.carray

_two, _three, _four, _six, _eight = map(tiles_dot, (2, 3, 4, 6, 8))


class Product:
    """The linear map x -> x @ weight.T for a few rows x, where the weight is codes uint8 [nb, K, 8 * bits].

    `scales` bfloat16 [groups, nb * 64, 2]: (scale, zero) of each output and group of K / groups columns. `rows`: the
    number of outputs that are not padding. `blocks`: the only ones of them that it multiplies by, all full."""

    def __init__(self, codes: Tensor, scales: Tensor, rows: int, blocks: range | None = None) -> None:
        whole, self.columns, width = codes.shape
        assert codes.is_contiguous() and scales.is_contiguous() and scales.shape[1:] == (whole * 64, 2)
        own = range(whole) if blocks is None else blocks
        self.rows = rows if blocks is None else len(own) * 64
        group = self.columns // scales.shape[0]
        # columns that share a step of int8
        self.step = next(size for size in (64, 32, 16) if group % size == 0)
        self.nbytes = codes.nbytes // whole * len(own)
        # what the addresses point to
        self._kept = (codes, scales)
        self.matrix = CodedMatrix(
            blocks=len(own),
            columns=self.columns,
            step=self.step,
            group=group,
            bits=width // 8,
            codes=codes[own.start :].data_ptr(),
            scales=scales[:, own.start * 64 :].data_ptr(),
            scales_stride=scales.stride(0) * scales.itemsize,
            outputs=self.rows,
        )
        self._alone = Joined([self])

    def __call__(self, x: Tensor) -> Tensor:  # [m, K] -> [m, rows]
        return self._alone(x)

    @property
    def halves(self) -> list[Product]:
        """The products by the first and by the last half of its outputs; empty where these do not lie in blocks of their own."""
        return [Product(*self._kept, self.rows, part) for part in halves(self.rows)]


class Joined:
    """Several products of the same rows in one run, as `form` says. All have one step."""

    def __init__(self, products: Sequence[Product], form: JoinForm = PLAIN) -> None:
        first, norm, after = products[0], form.norm, form.after
        assert all((p.columns, p.step) == (first.columns, first.step) for p in products)
        assert form.gate is None or [p.rows for p in products] == [first.rows] * 2
        self.columns = first.columns
        self.outputs = first.rows if form.gate else sum(p.rows for p in products)
        # of one row: codes and steps, and the row itself where it is normed, and what is added to a normed result
        self._row_bytes = self.columns + self.columns // first.step * 8
        self._own_bytes = max(self.columns * 4 if norm else 0, self.outputs * 8 if after else 0)
        floats = [bias.float().contiguous() if bias is not None else None for bias in form.biases]
        self._matrices = (CodedMatrix * len(products))(*[p.matrix for p in products])
        for matrix, bias in zip(self._matrices, floats, strict=False):
            matrix.bias = bias.data_ptr() if bias is not None else 0
        self._small = sum(p.nbytes for p in products) < ONE_THREAD
        self._kept = (products, form, floats)
        self._run = DraftRun(
            count=len(products),
            matrices=ctypes.addressof(self._matrices),
            blocks=sum(p.matrix.blocks for p in products) // (2 if form.gate else 1),
            outputs=self.outputs,
            gate=form.gate or 0,
            columns=self.columns,
            step=first.step,
            norm=norm.weight.data_ptr() if norm else 0,
            epsilon=bits_of(norm.epsilon) if norm else 0,
            after=after.weight.data_ptr() if after else 0,
            after_epsilon=bits_of(after.epsilon) if after else 0,
            times=bits_of(form.times),
            scale=bits_of(form.scale),
        )

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """x [m, K] -> [m, outputs], with `added` of that shape added."""
        if x.dtype not in (torch.bfloat16, torch.float32):
            return self(x.float(), None if added is None else added.float()).to(x.dtype)
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
    own = run.scratch + rows * columns + columns // run.step * rows * 8
    if run.norm != 0:
        for r in range(rows):
            _normed(run.x + r * columns * run.itemsize, run.itemsize, run.norm, run.epsilon, carray(float32_at(own), columns))
            to_int8(own, 4, codes[:, r : r + 1], steps[:, r : r + 1])
    else:
        to_int8(run.x, run.itemsize, codes, steps)
    if run.parallel == 0 or run.threads == 1:
        _work(argument)
    else:
        together(run.parallel, run.work, argument, run.threads)
    if run.after != 0:
        for r in range(rows):
            _finish(run, r, own)


@compiled
def _normed(row: int, itemsize: int, weights: int, epsilon: int, out: Any) -> None:
    """The row at address `row` after a norm, as float32 [columns]. `weights`: the address of the norm's; `epsilon`: its bits."""
    columns = out.shape[0]
    read(row, itemsize, out)
    factor = np.float32(1) / np.sqrt(squares(out) / np.float32(columns) + float_of(epsilon))
    weight = carray(float32_at(weights), columns)
    for k in range(columns):
        out[k] = out[k] * factor * weight[k]


@compiled
def _finish(run: Any, r: int, room: int) -> None:
    """Norm row r of y, add to it what is to be added, and scale it. `room`: for two rows of float32."""
    outputs = run.outputs
    offset = r * outputs * run.itemsize
    row, other = carray(float32_at(room), outputs), carray(float32_at(room + outputs * 4), outputs)
    _normed(run.y + offset, run.itemsize, run.after, run.after_epsilon, row)
    other[:], scale = np.float32(0), float_of(run.scale)
    if run.added != 0:
        read(run.added + offset, run.itemsize, other)
    for k in range(outputs):
        row[k] = (row[k] + other[k]) * scale
    write(row, run.y + offset, run.itemsize)


@compiled
def _work(argument: Any) -> None:
    """Take blocks until none is left, of `argument` or of the runs in its place. Runs on every thread of the team with the same
    argument."""
    lead = draft_run(argument)
    several = 1 + (lead.gate != 0)
    tiles = np.empty((several, lead.rows, 64), np.float32)
    line = np.zeros(64, np.float32)
    kept = np.empty(ROOM + 64, np.uint8)
    room = (kept.ctypes.data + 63) // 64 * 64
    while True:
        block = take(argument)
        own = argument
        if block >= lead.blocks * max(lead.others, 1):
            break
        if lead.others > 0:
            own = int64_at(lead.runs)[block // lead.blocks]
            block = block % lead.blocks
        run = draft_run(own)
        place, first = run.matrices, 0
        if run.gate == 0:
            while block >= coded_matrix(place).blocks:
                block -= coded_matrix(place).blocks
                first += coded_matrix(place).outputs
                place += MATRIX_BYTES
        # one call for both: numba puts the whole of it wherever it is called
        for m in range(several):
            _block(block, run, coded_matrix(place + m * MATRIX_BYTES), tiles[m, : run.rows], room)
        _finish_block(run, tiles, line, first, min(coded_matrix(place).outputs - block * 64, 64), block)
    # numba drops what is not named any more
    kept[0] = 0


@compiled
def _finish_block(run: Any, tiles: Any, line: Any, first: int, width: int, block: int) -> None:
    """Write `width` outputs of one block, `first` outputs after those of the first matrix: the first of `tiles`, gated by it the
    second, times a factor, with what is added, and scaled unless a norm comes first. `line`: room for zeros, or for a row of what
    is added."""
    tile, times = tiles[0], float_of(run.times)
    scale = float_of(run.scale) if run.after == 0 else np.float32(1)
    for r in range(run.rows if run.gate != 0 else 0):
        if run.gate == SILU:
            silu_gate(tile[r].ctypes.data, tiles[1, r].ctypes.data)
        else:
            gelu_gate(tile[r].ctypes.data, tiles[1, r].ctypes.data)
    for r in range(run.rows):
        offset = (r * run.outputs + first + block * 64) * run.itemsize
        if run.added != 0 and run.after == 0:
            read(run.added + offset, run.itemsize, line[:width])
        for j in range(width):
            tile[r, j] = (tile[r, j] * times + line[j]) * scale
        write(tile[r, :width], run.y + offset, run.itemsize)


@compiled
def _block(b: int, run: Any, matrix: Any, sums: Any, room: int) -> None:
    """sums [rows, 64] = all rows of x times block b of `matrix`, and its bias. `room`: ROOM bytes."""
    count, columns, step, bits = run.rows, matrix.columns, matrix.step, matrix.bits
    sums[:] = np.float32(0)
    tile, first_steps = sums.ctypes.data, run.scratch + count * columns
    for g in range(columns // step):
        codes = matrix.codes + (b * columns + g * step) * 8 * bits
        scales = matrix.scales + g * step // matrix.group * matrix.scales_stride + b * 256
        x, steps = run.scratch + g * count * step, first_steps + g * count * 8
        last = g + 1 == columns // step
        if matrix.group < columns:
            prefetch(scales + SCALES_AHEAD * matrix.scales_stride, 4)
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
