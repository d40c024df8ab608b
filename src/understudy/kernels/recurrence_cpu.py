"""The processor's rule and fold of recurrent layers (`recurrence.py`): threads take heads, and every sum runs over positions in
order.

First what each node reads at is multiplied by the keys on its path; then, head by head, come the nodes in their order, because the
delta rule needs a parent's update. A node's bits depend on its own path and position alone."""

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from ..recurrent import FOLD, RecurrentState
from ..tree import Nodes
from . import channel_cpu, team
from .compiled import contracted, machine_code
from .descriptor import FoldRun, RecurrentRun, fold_run, recurrent_run
from .recurrence import SPAN, RuleStep
from .team import float32_at, int64_at, take
from .weighted import add_rows, dots

# products below which waking the other threads costs more than it saves
SMALL = 1 << 20
# factors that are multiplied one after another; what such stretches come to is multiplied then
STRETCH = 16
# A smaller factor is zero: what it leaves of a record is nothing, and numbers below the normal ones are slow.
LEAST = np.float32(1.2e-38)
carray: Any = numpy_support.carray


def recur(step: RuleStep, state: RecurrentState, nodes: Nodes) -> Tensor:
    """The rule after each of `nodes`, parents before their children: [n, value heads, value size] float32. Records are put at their
    slots."""
    here = nodes.slots % state.places
    state.keys[nodes.rows, here] = step.key
    state.decays[nodes.rows, here] = step.decay
    reads = [step.query] if step.beta is None else [step.query, step.key]
    asked, values = torch.stack(reads, 2), step.value.contiguous()
    beta = values if step.beta is None else step.beta.contiguous()
    out, products = torch.empty_like(values), torch.empty(*asked.shape[:3], SPAN)
    rows, bases = nodes.rows.contiguous(), (nodes.positions // FOLD - 1).clamp(min=0) * FOLD
    paths = np.empty((len(rows), SPAN), np.int64)
    counts = _paths(bases.numpy(), nodes.positions.numpy(), nodes.prefix.numpy(), nodes.tail.numpy(), state.places, paths)
    run = RecurrentRun(
        nodes=len(rows),
        **_sizes(state),
        places=state.places,
        reads=len(reads),
        rows=rows.data_ptr(),
        bases=bases.data_ptr(),
        counts=counts.ctypes.data,
        paths=paths.ctypes.data,
        asked=asked.data_ptr(),
        values=values.data_ptr(),
        beta=beta.data_ptr(),
        out=out.data_ptr(),
        keys=state.keys.data_ptr(),
        updates=state.values.data_ptr(),
        decays=state.decays.data_ptr(),
        states=state.states.data_ptr(),
        products=products.data_ptr(),
    )
    multiply, read = entries()
    team.run(multiply, run, small=products.numel() * asked.shape[3] < SMALL)
    run.taken = 0
    team.run(read, run, small=values.numel() * asked.shape[3] < SMALL)
    return out


def fold(state: RecurrentState, row: int, number: int) -> None:
    """Make the state of `row` after FOLD * (number + 1) tokens, from the one after FOLD * number tokens and the records since."""
    if state.shape.by_channel:
        channel_cpu.fold(state, row, number)
        return
    path = (np.arange(FOLD) + FOLD * number) % state.places
    run = FoldRun(
        **_sizes(state),
        path=path.ctypes.data,
        keys=state.keys[row].data_ptr(),
        updates=state.values[row].data_ptr(),
        decays=state.decays[row].data_ptr(),
        before=state.states[row, number % 2].data_ptr() if number else 0,
        after=state.states[row, (number + 1) % 2].data_ptr(),
    )
    team.run(_folding(), run, small=state.states[row, 0].numel() * FOLD < SMALL)


def _sizes(state: RecurrentState) -> dict[str, int]:
    shape = state.shape
    return {name: getattr(shape, name) for name in ("key_heads", "value_heads", "key_size", "value_size")}


@cache
def entries() -> tuple[int, int]:
    """Addresses of machine code for both halves of `recur`."""
    return machine_code(inspect.unwrap(_multiply)), machine_code(inspect.unwrap(_read))


@cache
def _folding() -> int:
    return machine_code(inspect.unwrap(_fold))


@contracted
def _paths(bases: Any, positions: Any, prefix: Any, tail: Any, places: int, paths: Any) -> Any:
    """Fill paths [n, SPAN] with places of the records that each node reads, in the order of positions. Returns how many."""
    counts = np.empty(len(bases), np.int64)
    for node in range(len(bases)):
        base, count = bases[node], positions[node] - bases[node] + 1
        counts[node] = count
        for i in range(count):
            position = base + i
            slot = position if position < prefix[node] else tail[node, position - prefix[node]]
            paths[node, i] = slot % places
    return counts


@contracted
def _multiply(argument: Any) -> None:
    """Multiply what nodes read at by the keys on their paths, until no head of no node is left."""
    run = recurrent_run(argument)
    heads, size, reads = run.key_heads, run.key_size, run.reads
    rows, counts = carray(int64_at(run.rows), run.nodes), carray(int64_at(run.counts), run.nodes)
    while True:
        piece = take(argument)
        if piece >= run.nodes * heads:
            break
        node, head = piece // heads, piece % heads
        keys = run.keys + (rows[node] * run.places * heads + head) * size * 4
        path = carray(int64_at(run.paths + node * SPAN * 8), SPAN)
        x, out = run.asked + piece * reads * size * 4, run.products + piece * reads * SPAN * 4
        for i in range(counts[node]):
            dots(keys + path[i] * heads * size * 4, size, x, reads, out + i * 4, SPAN)


@contracted
def _read(argument: Any) -> None:
    """Read the state at all nodes and write their updates, until no head is left."""
    run = recurrent_run(argument)
    room, steps = np.empty(3 * SPAN + 2 * run.value_size, np.float32), np.arange(run.key_size)
    while True:
        head = take(argument)
        if head >= run.value_heads:
            break
        for node in range(run.nodes):
            _read_one(run, head, node, room, steps)


@contracted
def _read_one(run: Any, head: int, node: int, room: Any, steps: Any) -> None:
    """What one node reads of one head, and its update. room: for what is left of records [SPAN], weights [2, SPAN] and sums
    [2, value size]; steps: 0 to key size - 1."""
    heads, reads, size = run.value_heads, run.reads, run.value_size
    row, path = int64_at(run.rows)[node], run.paths + node * SPAN * 8
    last = int64_at(run.counts)[node] - 1
    left, weights, sums = room[:SPAN], room[SPAN : 3 * SPAN], room[3 * SPAN :]
    whole = _left(run.decays + (row * run.places * heads + head) * 4, heads, carray(int64_at(path), SPAN), last + 1, left)
    asked = (node * run.key_heads + head // (heads // run.key_heads)) * reads
    for o in range(reads):
        products = carray(float32_at(run.products + (asked + o) * SPAN * 4), SPAN)
        for i in range(last + 1):
            weights[o * SPAN + i] = products[i] * left[i]
    sums[:] = np.float32(0)
    base = int64_at(run.bases)[node] // FOLD
    if base > 0:
        state = run.states + ((row * 2 + base % 2) * heads + head) * run.key_size * size * 4
        x = run.asked + asked * run.key_size * 4
        add_rows(state, steps.ctypes.data, run.key_size, size * 4, x, reads, run.key_size, sums.ctypes.data, size)
        for c in range(reads * size):
            sums[c] *= whole
    updates = run.updates + (row * run.places * heads + head) * size * 4
    add_rows(updates, path, last, heads * size * 4, weights.ctypes.data, reads, SPAN, sums.ctypes.data, size)
    own = carray(float32_at(updates + int64_at(path)[last] * heads * size * 4), size)
    values = carray(float32_at(run.values + (node * heads + head) * size * 4), size)
    if reads == 2:
        share = float32_at(run.beta)[node * heads + head]
        for c in range(size):
            own[c] = (values[c] - sums[size + c]) * share
    else:
        own[:] = values
    out = carray(float32_at(run.out + (node * heads + head) * size * 4), size)
    for c in range(size):
        out[c] = sums[c] + weights[last] * own[c]


@contracted
def _left(decays: int, stride: int, path: Any, count: int, left: Any) -> Any:
    """left[i] = the product of the decays after record i of `count`; returns the product of all. The record at place p has its
    decay p * stride numbers after `decays`.

    Each stretch of STRETCH records is multiplied from its end, then by what the stretches behind it come to."""
    behind = np.float32(1)
    for start in range((count - 1) // STRETCH * STRETCH, -1, -STRETCH):
        product = np.float32(1)
        for i in range(min(start + STRETCH, count) - 1, start - 1, -1):
            left[i] = _or_zero(product * behind)
            product = _or_zero(product * float32_at(decays)[path[i] * stride])
        behind = _or_zero(product * behind)
    return behind


@contracted
def _or_zero(factor: Any) -> Any:
    return factor if factor >= LEAST else np.float32(0)


@contracted
def _fold(argument: Any) -> None:
    """Fold the records of one head after another into its state, until none is left."""
    run = fold_run(argument)
    heads, key_size, size = run.value_heads, run.key_size, run.value_size
    path = carray(int64_at(run.path), FOLD)
    left, weights = np.empty(FOLD, np.float32), np.empty((key_size, FOLD), np.float32)
    while True:
        head = take(argument)
        if head >= heads:
            break
        key_head = head // (heads // run.key_heads)
        whole = _left(run.decays + head * 4, heads, path, FOLD, left)
        for i in range(FOLD):
            key = carray(float32_at(run.keys + (path[i] * run.key_heads + key_head) * key_size * 4), key_size)
            for c in range(key_size):
                weights[c, i] = key[c] * left[i]
        after = carray(float32_at(run.after + head * key_size * size * 4), key_size * size)
        if run.before != 0:
            before = carray(float32_at(run.before + head * key_size * size * 4), key_size * size)
            for c in range(key_size * size):
                after[c] = before[c] * whole
        else:
            after[:] = np.float32(0)
        updates, factors = run.updates + head * size * 4, weights.ctypes.data
        for c in range(key_size):
            out = run.after + (head * key_size + c) * size * 4
            add_rows(updates, run.path, FOLD, heads * size * 4, factors + c * FOLD * 4, 1, 0, out, size)
