"""What a draft's nodes do in one layer between the products of queries, keys and values and that of the output: positions turn
queries and keys, keys and values go to the cache, and each node attends. One run for all of it.

The bits of a node depend on no other node beside it, whatever the level."""

import inspect
from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np import numpy_support
from torch import Tensor

from ..layer_states import FullState
from ..small_keys import size_in
from ..tree import Nodes
from . import team
from .attention import AttentionSpec
from .attention_cpu import exponential
from .compiled import bits_of, float_of, loose, machine_code
from .descriptor import LevelRun, level_run
from .numbers import read, step_of, write, write_codes
from .team import float32_at, int64_at, take, uint8_at, uint16_at

# products of a query and a key below which other threads are not worth waking
SMALL = 400_000
carray: Any = numpy_support.carray


def attend(made: Tensor, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    """Attention of `nodes`, whose queries, keys and values are side by side in `made` [n, ...], over `state`, which gets their keys
    and values: [n, heads * value size].

    `turns`: cosines and sines [n, key size] of the nodes' positions. There may be no softcap and no sinks in `spec`."""
    run, kept = described(made.shape[1], made.itemsize, turns, state, nodes, spec)
    assert made.is_contiguous()
    out = torch.empty((len(made), run.heads * run.value_size), dtype=made.dtype)
    run.made, run.out = made.data_ptr(), out.data_ptr()
    team.run(entry(), run, small=is_small(run))
    del kept
    return out


def described(
    columns: int, itemsize: int, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, spec: AttentionSpec
) -> tuple[LevelRun, object]:
    """`attend` of what has so many `columns` and bytes of an element, but for the addresses of that and of the result; and what
    must be kept while it runs."""
    assert not spec.softcap and spec.sinks is None
    rows, positions, prefix, tail = nodes.arrays
    keys, values = state.keys, state.values
    kv_heads, key_size, value_size = keys.shape[1], size_in(keys), size_in(values)
    row_lines, head_lines = _lines(keys)
    assert _lines(values) == (row_lines, head_lines), "keys and values lie in different orders"
    cosines, sines = (turn.contiguous() for turn in turns)
    run = LevelRun(
        nodes=len(nodes), heads=(columns - kv_heads * value_size) // key_size - kv_heads, kv_heads=kv_heads,
        key_size=key_size, value_size=value_size, itemsize=itemsize, cache_itemsize=keys.itemsize,
        cosines=cosines.data_ptr(), sines=sines.data_ptr(), rows=_address(rows), slots=_address(nodes.slots.numpy()),
        positions=_address(positions), prefix=_address(prefix), tail=_address(tail), beyond=tail.shape[1],
        window=spec.window, longest=nodes.last + 1, keys=keys.data_ptr(), values=values.data_ptr(), places=keys.shape[2],
        row_lines=row_lines, head_lines=head_lines, scaling=bits_of(spec.scaling),
    )  # fmt: skip
    return run, (nodes, cosines, sines)


def is_small(run: LevelRun) -> bool:
    """Is `run` not worth waking other threads for?"""
    return int(run.nodes * run.heads * run.key_size * run.longest) < SMALL


def _lines(slab: Tensor) -> tuple[int, int]:
    """How many lines of one key or value lie between two rows of `slab`, and between two heads: rows of a padded cache overlap."""
    size = slab.shape[3]
    row, head, place, number = slab.stride()
    assert (place, number) == (size, 1) and row % size == head % size == 0, f"strides {slab.stride()}"
    return row // size, head // size


def _address(array: Any) -> int:
    assert array.flags.c_contiguous and array.dtype == np.int64
    return int(array.ctypes.data)


@cache
def entry() -> int:
    """The address of what attends."""
    return machine_code(inspect.unwrap(_work))


@loose
def _work(argument: Any) -> None:
    """Take heads of keys until none is left. Runs on every thread of the team with the same argument."""
    run = level_run(argument)
    group = run.heads // run.kv_heads
    queries, turns = np.empty((group, run.key_size), np.float32), np.empty((3, run.key_size), np.float32)
    line = np.empty(max(run.key_size, run.value_size), np.float32)
    weights = np.empty((group, (run.longest + 63) // 64 * 64), np.float32)
    sums, power = np.empty((group, run.value_size), np.float32), np.empty(64, np.int32)
    positions = carray(int64_at(run.positions), run.nodes)
    while True:
        head = take(argument)
        if head >= run.kv_heads:
            break
        for i in range(run.nodes):
            _keep(run, i, head, turns, line)
        for i in range(run.nodes):
            high = positions[i]
            low = max(0, high + 1 - run.window) if run.window > 0 else 0
            for g in range(group):
                _turn(run, i, head * group + g, turns, queries[g])
            sums[:] = np.float32(0)
            # keys, then values: one call for both, since numba puts the whole of it wherever it is called
            for scoring in range(1, -1, -1):
                _through(run, i, head, low, high, queries if scoring else sums, weights, scoring)
                for g in range(group * scoring):
                    _softmax(weights[g], high - low + 1, power)
            for g in range(group):
                offset = (i * run.heads + head * group + g) * run.value_size * run.itemsize
                write(sums[g], run.out + offset, run.itemsize)


@loose
def _turn(run: Any, i: int, head: int, turns: Any, out: Any) -> None:
    """Head number `head` (of queries, then of keys) of node i, turned by its position, as float32 [key size]. `turns`: room for
    three of them."""
    size, half = run.key_size, run.key_size // 2
    width = (run.heads + run.kv_heads) * size + run.kv_heads * run.value_size
    read(run.made + (i * width + head * size) * run.itemsize, run.itemsize, turns[0])
    read(run.cosines + i * size * run.itemsize, run.itemsize, turns[1])
    read(run.sines + i * size * run.itemsize, run.itemsize, turns[2])
    for c in range(half):
        out[c] = turns[0, c] * turns[1, c] - turns[0, c + half] * turns[2, c]
        out[c + half] = turns[0, c + half] * turns[1, c + half] + turns[0, c] * turns[2, c + half]


@loose
def _line(run: Any, i: int, head: int, slot: int) -> Any:
    """Which line of the cache holds slot `slot` of node i's row, for `head`."""
    row = carray(int64_at(run.rows), run.nodes)[i]
    return row * run.row_lines + head * run.head_lines + slot % run.places


@loose
def _keep(run: Any, i: int, head: int, turns: Any, line: Any) -> None:
    """Put the key and the value of node i in the cache."""
    place = _line(run, i, head, carray(int64_at(run.slots), run.nodes)[i])
    key, value = line[: run.key_size], line[: run.value_size]
    _turn(run, i, run.heads + head, turns, key)
    _put(key, run.keys + place * _width(run.key_size, run.cache_itemsize), run.cache_itemsize)
    before = (run.heads + run.kv_heads) * run.key_size
    made = i * (before + run.kv_heads * run.value_size) + before + head * run.value_size
    read(run.made + made * run.itemsize, run.itemsize, value)
    _put(value, run.values + place * _width(run.value_size, run.cache_itemsize), run.cache_itemsize)


@loose
def _width(size: int, itemsize: int) -> Any:
    """Bytes of a key or a value in the cache: lines of `small_keys` end with their step."""
    return size + 4 if itemsize == 1 else size * itemsize


@loose
def _put(numbers: Any, address: int, itemsize: int) -> None:
    """Put `numbers` into the cache at `address`."""
    if itemsize == 1:
        write_codes(numbers, address)
    else:
        write(numbers, address, itemsize)


@loose
def _through(run: Any, i: int, head: int, low: int, high: int, lines: Any, weights: Any, scoring: int) -> None:
    """Go through the positions that node i sees, neighbours in the cache together. `scoring`: `weights` [heads, positions from
    `low` on] become the products of keys with `lines` [heads, key size]; else values by weights are added to `lines`."""
    prefix, tail = carray(int64_at(run.prefix), run.nodes)[i], carray(int64_at(run.tail), (run.nodes, run.beyond))
    size, slab = (run.key_size, run.keys) if scoring else (run.value_size, run.values)
    scaling, position = float_of(run.scaling), low
    while position <= high:
        count, slot = 1, position
        if position < prefix:
            count = min(min(prefix, high + 1) - position, run.places - position % run.places)
        else:
            slot = tail[i, position - prefix]
        address = slab + _line(run, i, head, slot) * _width(size, run.cache_itemsize)
        part = weights[:, position - low : position - low + count]
        if run.cache_itemsize == 2:
            halves = carray(uint16_at(address), (count, size))
            if scoring:
                _score_halves(halves, lines, scaling, part)
            else:
                _weigh_halves(halves, part, lines)
        elif run.cache_itemsize == 1:
            codes = carray(uint8_at(address), (count, size + 4))
            if scoring:
                _score_codes(codes, lines, scaling, part)
            else:
                _weigh_codes(codes, part, lines)
        else:
            floats = carray(float32_at(address), (count, size))
            if scoring:
                _score_floats(floats, lines, scaling, part)
            else:
                _weigh_floats(floats, part, lines)
        position += count


@loose
def _score_halves(keys: Any, queries: Any, scaling: Any, out: Any) -> None:
    """out [heads, n] = scaled products of queries [heads, size] and keys [n, size], bfloat16."""
    for p in range(keys.shape[0]):
        for g in range(queries.shape[0]):
            total = np.float32(0)
            for c in range(queries.shape[1]):
                total += queries[g, c] * float_of(np.int64(keys[p, c]) << 16)
            out[g, p] = total * scaling


@loose
def _score_codes(keys: Any, queries: Any, scaling: Any, out: Any) -> None:
    """`_score_halves` of lines of `small_keys`."""
    size = queries.shape[1]
    for p in range(keys.shape[0]):
        step = step_of(keys[p], size) * scaling
        for g in range(queries.shape[0]):
            total = np.float32(0)
            for c in range(size):
                total += queries[g, c] * np.float32(np.int8(keys[p, c]))
            out[g, p] = total * step


@loose
def _score_floats(keys: Any, queries: Any, scaling: Any, out: Any) -> None:
    """`_score_halves` in float32."""
    for p in range(keys.shape[0]):
        for g in range(queries.shape[0]):
            total = np.float32(0)
            for c in range(queries.shape[1]):
                total += queries[g, c] * keys[p, c]
            out[g, p] = total * scaling


@loose
def _weigh_halves(values: Any, weights: Any, sums: Any) -> None:
    """sums [heads, size] += weights [heads, n] @ values [n, size], bfloat16."""
    for p in range(values.shape[0]):
        for g in range(sums.shape[0]):
            for c in range(sums.shape[1]):
                sums[g, c] += weights[g, p] * float_of(np.int64(values[p, c]) << 16)


@loose
def _weigh_codes(values: Any, weights: Any, sums: Any) -> None:
    """`_weigh_halves` of lines of `small_keys`."""
    size = sums.shape[1]
    for p in range(values.shape[0]):
        step = step_of(values[p], size)
        for g in range(sums.shape[0]):
            weight = weights[g, p] * step
            for c in range(size):
                sums[g, c] += weight * np.float32(np.int8(values[p, c]))


@loose
def _weigh_floats(values: Any, weights: Any, sums: Any) -> None:
    """`_weigh_halves` in float32."""
    for p in range(values.shape[0]):
        for g in range(sums.shape[0]):
            for c in range(sums.shape[1]):
                sums[g, c] += weights[g, p] * values[p, c]


@loose
def _softmax(line: Any, count: int, power: Any) -> None:
    """In place over the first `count` numbers of `line`, whose length is a multiple of 64."""
    top = line[0]
    for j in range(1, count):
        top = max(top, line[j])
    end = (count + 63) // 64 * 64
    line[count:end] = top
    for start in range(0, end, 64):
        exponential(line[start : start + 64], top, power)
    total = np.float32(0)
    for j in range(count):
        total += line[j]
    inverse = np.float32(1) / total
    for j in range(count):
        line[j] *= inverse
