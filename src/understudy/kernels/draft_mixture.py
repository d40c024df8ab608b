"""A level's rows through the gated MLPs of the experts that each goes to, and their sums: all of a layer in one call.

The matrices of a layer's experts lie one below the other (`draft_experts`). Blocks of all experts that have rows are dealt out
together: there are two waits in a layer, however many experts it uses."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from . import team
from .compiled import bits_of, compiled, machine_code
from .descriptor import NUMBER, Descriptor, reader, rooms
from .draft_descriptors import MATRIX_BYTES, CodedMatrix, DraftRun
from .draft_experts import ExpertProduct
from .draft_product import entries
from .int8_rows import to_int8
from .join_form import GateKind
from .numbers import read, write
from .team import float32_at, int8_at, int64_at

RUN_BYTES, RUN_NUMBERS = ctypes.sizeof(DraftRun), len(DraftRun._fields_)
# the places in a run of what each level fills in
ROWS, Y, SCRATCH, TAKEN, OTHERS, RUNS = (
    [name for name, *_ in DraftRun._fields_].index(name) for name in ("rows", "y", "scratch", "taken", "others", "runs")
)
# bytes of a number between the products
FLOAT = 4
carray: Any = numpy_support.carray


class ExpertsRun(Descriptor):
    """One of both products, of all experts."""

    __slots__ = ()
    _fields_ = (
        # address of a `DraftRun` for each expert, and of the one that leads those with rows
        ("runs", NUMBER),
        ("leader", NUMBER),
        # of a row: numbers given, numbers made, and bytes of room to round it
        ("columns", NUMBER),
        ("outputs", NUMBER),
        ("row_bytes", NUMBER),
        # columns that share a step of int8
        ("step", NUMBER),
        # addresses of room to round all routed rows, and of what is made of them, float32 [routed rows, outputs]
        ("scratch", NUMBER),
        ("made", NUMBER),
    )


class MixtureRun(Descriptor):
    """A level through the experts of a layer; see `DraftMixture`."""

    __slots__ = ()
    _fields_ = (
        ("taken", NUMBER),
        ("up", ExpertsRun),
        ("down", ExpertsRun),
        ("experts", NUMBER),
        ("nodes", NUMBER),
        # experts that each node goes to
        ("each", NUMBER),
        # addresses: hidden [nodes, columns] and out [nodes, outputs], bfloat16 or float32; int64 and float32 [nodes, each]
        ("hidden", NUMBER),
        ("out", NUMBER),
        ("chosen", NUMBER),
        ("weights", NUMBER),
        ("itemsize", NUMBER),
        # addresses of room for int64: [experts + 1], [nodes * each] twice, [experts] twice
        ("starts", NUMBER),
        ("order", NUMBER),
        ("places", NUMBER),
        ("used", NUMBER),
        ("leads", NUMBER),
        # address of GOMP_parallel (0: there is none), and how many threads multiply
        ("parallel", NUMBER),
        ("threads", NUMBER),
        # address of the kernel that each thread runs
        ("work", NUMBER),
    )


mixture_run = reader(MixtureRun)


class _Half(NamedTuple):
    """One of both products: what a kernel is told of it, and what its addresses point to."""

    run: ExpertsRun
    kept: tuple[Any, ...]


class DraftMixture:
    """hidden [n, K], the experts chosen [n, k] of each row and their weights [n, k] -> [n, K]: of each row, the sum of what its
    experts give. An expert opens the first half of what `up` gives with `gate`, and `down` multiplies that times the other half.
    Numbers that no expert has are left out."""

    def __init__(self, up: ExpertProduct, down: ExpertProduct, gate: GateKind) -> None:
        assert up.experts == down.experts and up.rows == 2 * down.columns and up.rows % 128 == 0
        self.experts, self.columns, self.outputs = up.experts, up.columns, down.rows
        self._up, self._down = _half(up, gate), _half(down, None)

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        count, each = chosen.shape
        assert hidden.shape == (count, self.columns) and weights.shape == chosen.shape
        if hidden.dtype not in (torch.bfloat16, torch.float32):
            return self(hidden.float(), chosen, weights).to(hidden.dtype)
        hidden, chosen, weights = hidden.contiguous(), chosen.long().contiguous(), weights.float().contiguous()
        out = torch.empty((count, self.outputs), dtype=hidden.dtype)
        routed, up, down = count * each, self._up.run, self._down.run
        sizes = [8 * (self.experts + 1), 8 * routed, 8 * routed, 8 * self.experts, 8 * self.experts]
        sizes += [size for half in (up, down) for size in (routed * half.row_bytes, routed * half.outputs * FLOAT)]
        kept, (starts, order, places, used, leads, *halves) = rooms(sizes)
        run = MixtureRun(
            up=up, down=down, experts=self.experts, nodes=count, each=each, hidden=hidden.data_ptr(), out=out.data_ptr(),
            chosen=chosen.data_ptr(), weights=weights.data_ptr(), itemsize=hidden.itemsize, starts=starts, order=order,
            places=places, used=used, leads=leads, parallel=team.parallel(), threads=team.threads(), work=entries()[1],
        )  # fmt: skip
        run.up.scratch, run.up.made, run.down.scratch, run.down.made = halves
        through()(ctypes.addressof(run))
        del kept
        return out


def _half(product: ExpertProduct, gate: GateKind | None) -> _Half:
    parts = 2 if gate else 1
    matrices = (CodedMatrix * (product.experts * parts))()
    runs = (DraftRun * product.experts)()
    blocks = product.blocks // parts
    for expert in range(product.experts):
        for part in range(parts):
            matrices[expert * parts + part] = product.matrix_of(expert, part * blocks, blocks)
        runs[expert] = DraftRun(
            count=parts, matrices=ctypes.addressof(matrices) + expert * parts * MATRIX_BYTES, blocks=blocks, outputs=blocks * 64,
            gate=gate or 0, columns=product.columns, step=product.step, itemsize=FLOAT, times=bits_of(1.0), scale=bits_of(1.0),
        )  # fmt: skip
    leader = DraftRun(blocks=blocks, gate=gate or 0)
    run = ExpertsRun(
        runs=ctypes.addressof(runs), leader=ctypes.addressof(leader), columns=product.columns, outputs=blocks * 64,
        row_bytes=product.row_bytes, step=product.step,
    )  # fmt: skip
    return _Half(run, (product, matrices, runs, leader))


@cache
def through() -> Callable[[int], None]:
    """What runs a `MixtureRun`, to be called with its address."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(machine_code(_through))


def _through(argument: Any) -> None:
    """Find the rows of each expert, have all threads multiply them twice, and add what the experts of each node gave."""
    run = mixture_run(argument)
    used, most = _sorted(run)
    if used > 0:
        for down in range(2):
            half = run.down if down else run.up
            _rounded(run, half, used, down)
            _lead(run, half, used, most)
    _added(run)


@compiled
def _sorted(run: Any) -> Any:
    """Put routed rows in the order of their experts. Returns how many experts have rows, and the most rows that one has."""
    routed = run.nodes * run.each
    chosen = carray(int64_at(run.chosen), routed)
    starts, used = carray(int64_at(run.starts), run.experts + 1), carray(int64_at(run.used), run.experts)
    order, places = carray(int64_at(run.order), routed), carray(int64_at(run.places), routed)
    for e in range(run.experts + 1):
        starts[e] = 0
    for i in range(routed):
        if 0 <= chosen[i] < run.experts:
            starts[chosen[i]] += 1
    count, most, before = 0, 0, 0
    for e in range(run.experts + 1):
        own = starts[e]
        starts[e] = before
        before += own
        if own > 0:
            used[count] = e
            count, most = count + 1, max(most, own)
    # each expert's start moves on to the next one's, and back
    for i in range(routed):
        places[i] = -1
        if 0 <= chosen[i] < run.experts:
            places[i] = starts[chosen[i]]
            order[places[i]] = i
            starts[chosen[i]] += 1
    for e in range(run.experts, 0, -1):
        starts[e] = starts[e - 1]
    starts[0] = 0
    return count, most


@compiled
def _rounded(run: Any, half: Any, used: int, down: int) -> None:
    """Round what each expert multiplies, and tell its run where that lies."""
    experts, starts = carray(int64_at(run.used), run.experts), carray(int64_at(run.starts), run.experts + 1)
    order = carray(int64_at(run.order), run.nodes * run.each)
    itemsize = 4 if down else run.itemsize
    leads = carray(int64_at(run.leads), run.experts)
    for u in range(used):
        start, count = starts[experts[u]], starts[experts[u] + 1] - starts[experts[u]]
        leads[u] = half.runs + experts[u] * RUN_BYTES
        numbers = carray(int64_at(leads[u]), RUN_NUMBERS)
        scratch = half.scratch + start * half.row_bytes
        numbers[ROWS], numbers[SCRATCH], numbers[Y] = count, scratch, half.made + start * half.outputs * 4
        codes = carray(int8_at(scratch), (half.columns // half.step, count, half.step))
        steps = carray(float32_at(scratch + count * half.columns), (half.columns // half.step, count, 2))
        for r in range(count):
            row = start + r if down else order[start + r] // run.each
            source = run.up.made if down else run.hidden
            to_int8(source + row * half.columns * itemsize, itemsize, codes[:, r : r + 1], steps[:, r : r + 1])


@compiled
def _lead(run: Any, half: Any, used: int, most: int) -> None:
    """Have all threads take blocks of the experts that have rows."""
    leader = carray(int64_at(half.leader), RUN_NUMBERS)
    leader[TAKEN], leader[ROWS], leader[OTHERS], leader[RUNS] = 0, most, used, run.leads
    team.share(run, run.work, half.leader)


@compiled
def _added(run: Any) -> None:
    """Add what the experts of each node made, times their weights, in the order in which the node names them."""
    outputs = run.down.outputs
    places, weights = carray(int64_at(run.places), run.nodes * run.each), carray(float32_at(run.weights), run.nodes * run.each)
    total, one = np.empty(outputs, np.float32), np.empty(outputs, np.float32)
    for node in range(run.nodes):
        total[:] = np.float32(0)
        for i in range(node * run.each, (node + 1) * run.each):
            if places[i] >= 0:
                read(run.down.made + places[i] * outputs * 4, 4, one)
                for c in range(outputs):
                    total[c] += one[c] * weights[i]
        write(total, run.out + node * outputs * run.itemsize, run.itemsize)
