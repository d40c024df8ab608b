"""Heads of queries and keys of a draft's nodes: normed, turned by position, and kept in the cache with their values; for use inside
kernels that run a `draft_descriptors.LevelRun`."""

from typing import Any

import numpy as np
from numba.np import numpy_support

from .compiled import compiled, float_of
from .numbers import read, squares, write, write_codes
from .team import float32_at, int64_at

carray: Any = numpy_support.carray


@compiled
def made_at(run: Any, i: int, head: int) -> Any:
    """Where head number `head` (of queries, then of keys) of node i was put by the products."""
    before = head + min(head, run.heads) * run.gated
    return run.made + (i * line_of(run) + before * run.key_size) * run.itemsize


@compiled
def line_of(run: Any) -> Any:
    """How many numbers the products made of a node."""
    keys = run.heads * (1 + run.gated) + run.kv_heads * run.keys_made
    return keys * run.key_size + run.kv_heads * run.values_made * run.value_size


@compiled
def opened(run: Any, i: int, head: int, gate: Any, sums: Any) -> None:
    """Multiply what head number `head` of node i gives by the logistic function of its gate. `gate`: room for that."""
    read(made_at(run, i, head) + run.key_size * run.itemsize, run.itemsize, gate)
    for c in range(gate.shape[0]):
        sums[c] /= np.float32(1) + np.exp(-gate[c])


@compiled
def factor_of(run: Any, i: int, first: int, count: int, line: Any) -> Any:
    """What makes the mean square of `count` heads of node i one, from head number `first` on. `line`: room [key size]."""
    total = np.float32(0)
    for head in range(first, first + count):
        read(made_at(run, i, head), run.itemsize, line)
        total += squares(line)
    return np.float32(1) / np.sqrt(total / np.float32(count * run.key_size) + float_of(run.epsilon))


@compiled
def _normed(run: Any, i: int, head: int, factors: Any, line: Any) -> None:
    """Norm `line`, head number `head` (of queries, then of keys) of node i. `factors`: of all heads of each node, if those count
    together."""
    size, of_key = run.key_size, head >= run.heads
    weights = run.key_norm if of_key else run.query_norm
    if run.all_heads != 0:
        factor = factors[1 if of_key else 0, i]
        weights += (head - run.heads if of_key else head) * size * 4
    else:
        factor = np.float32(1) / np.sqrt(squares(line) / np.float32(size) + float_of(run.epsilon))
    weight = carray(float32_at(weights), size)
    for c in range(size):
        line[c] *= factor * weight[c]


@compiled
def turn(run: Any, i: int, head: int, factors: Any, turns: Any, out: Any) -> None:
    """Head number `head` (of queries, then of keys) of node i, normed and turned by its position, as float32 [key size]. `turns`:
    room for three of them."""
    size, angles, turned, half = run.key_size, run.angles, run.turned, run.turned // 2
    read(made_at(run, i, head), run.itemsize, turns[0])
    if run.query_norm != 0:
        _normed(run, i, head, factors, turns[0])
    read(run.cosines + i * angles * run.itemsize, run.itemsize, turns[1, : min(angles, turned)])
    read(run.sines + i * angles * run.itemsize, run.itemsize, turns[2, : min(angles, turned)])
    straight, across, there = turns[0, run.first :], turns[0, run.first + 1 :], out[run.first :]
    if run.order == 0:
        on = half if angles >= turned else 0
        for c in range(half):
            there[c] = straight[c] * turns[1, c] - straight[c + half] * turns[2, c]
            there[c + half] = straight[c + half] * turns[1, c + on] + straight[c] * turns[2, c + on]
    elif run.order == 1:
        for c in range(half):
            there[2 * c] = straight[2 * c] * turns[1, c] - across[2 * c] * turns[2, c]
            there[2 * c + 1] = across[2 * c] * turns[1, c] + straight[2 * c] * turns[2, c]
    else:
        for c in range(half):
            there[c] = straight[2 * c] * turns[1, c] - across[2 * c] * turns[2, c]
            there[c + half] = across[2 * c] * turns[1, c] + straight[2 * c] * turns[2, c]
    for c in range(run.first):
        out[c] = turns[0, c]
    for c in range(run.first + turned, size):
        out[c] = turns[0, c]


@compiled
def _line(run: Any, i: int, head: int, slot: int) -> Any:
    """Which line of the cache holds slot `slot` of node i's row, for `head`."""
    row = carray(int64_at(run.rows), run.nodes)[i]
    return row * run.row_lines + head * run.head_lines + slot % run.places


@compiled
def keep(run: Any, i: int, head: int, factors: Any, turns: Any, line: Any) -> None:
    """Put the key and the value of node i in the cache."""
    place = _line(run, i, head, carray(int64_at(run.slots), run.nodes)[i])
    key, value = line[: run.key_size], line[: run.value_size]
    turn(run, i, run.heads + head, factors, turns, key)
    _put(key, run.keys + place * width_of(run.key_size, run.cache_itemsize), run.cache_itemsize)
    made = made_at(run, i, run.heads + head)
    if run.values_made != 0:
        made = run.made + ((i + 1) * line_of(run) - (run.kv_heads - head) * run.value_size) * run.itemsize
    read(made, run.itemsize, value)
    if run.values_normed != 0:
        factor = np.float32(1) / np.sqrt(squares(value) / np.float32(run.value_size) + float_of(run.value_epsilon))
        for c in range(run.value_size):
            value[c] *= factor
    _put(value, run.values + place * run.value_line, run.cache_itemsize)


@compiled
def width_of(size: int, itemsize: int) -> Any:
    """Bytes of a key or a value in the cache: lines of `small_keys` end with their step."""
    return size + 4 if itemsize == 1 else size * itemsize


@compiled
def _put(numbers: Any, address: int, itemsize: int) -> None:
    """Put `numbers` into the cache at `address`."""
    if itemsize == 1:
        write_codes(numbers, address)
    else:
        write(numbers, address, itemsize)
