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
from .cache_lines import TOGETHER, score, weigh
from .compiled import bits_of, compiled, float_of, machine_code
from .draft_descriptors import LevelRun, level_run
from .head_form import HeadForm, Made
from .numbers import multiple, write
from .paired_lines import STEP, has_pairs, score_pairs, weigh_pairs
from .softmax import capped, softmax
from .team import float32_at, int64_at, take, uint16_at
from .turned_heads import factor_of, keep, opened, turn, width_of

# products of a query and a key below which other threads are not worth waking
SMALL = 400_000
# rows of queries that go through the cache together, about
ROWS = 16
# whether pairs of bfloat16 are multiplied at once
PAIRS = has_pairs()
carray: Any = numpy_support.carray


def attend(made: Tensor, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: HeadForm) -> Tensor:
    """Attention of `nodes`, whose queries, keys and values are side by side in `made` [n, ...] (see `Made`), over `state`,
    which gets their keys and values: [n, heads * value size].

    `turns`: cosines and sines [n, angles] of the nodes' positions."""
    run, kept = described(made.shape[1], made.itemsize, turns, state, nodes, form)
    assert made.is_contiguous()
    out = torch.empty((len(made), run.heads * run.value_size), dtype=made.dtype)
    run.made, run.out = made.data_ptr(), out.data_ptr()
    team.run(entry(), run, small=is_small(run))
    del kept
    return out


def described(
    columns: int, itemsize: int, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: HeadForm
) -> tuple[LevelRun, object]:
    """`attend` of what has so many `columns` and bytes of an element, but for the addresses of that and of the result; and what
    must be kept while it runs."""
    spec, sinks = form.spec, form.sinks
    rows, positions, prefix, tail = nodes.arrays
    keys, values = state.keys, state.values
    kv_heads, key_size, value_size = keys.shape[1], size_in(keys), size_in(values)
    row_lines, head_lines = _lines(keys)
    assert _lines(values) == (row_lines, head_lines), "keys and values lie in different orders"
    cosines, sines = (turn.to(torch.bfloat16 if itemsize == 2 else torch.float32).contiguous() for turn in turns)
    heads = form.heads(columns, kv_heads, key_size, value_size)
    query, key = form.norms or (None, None)
    turned = form.turned(cosines.shape[1])
    run = LevelRun(
        nodes=len(nodes), heads=heads, kv_heads=kv_heads,
        key_size=key_size, value_size=value_size, itemsize=itemsize, cache_itemsize=keys.itemsize,
        cosines=cosines.data_ptr(), sines=sines.data_ptr(), order=form.turn.order,
        gated=form.gated, angles=cosines.shape[1], turned=turned, first=key_size - turned if form.last else 0,
        keys_made=form.made is not Made.QUERIES, values_made=form.made is Made.ALL,
        values_normed=form.value_epsilon is not None, value_epsilon=bits_of(form.value_epsilon or 0.0),
        query_norm=query.weight.data_ptr() if query else 0, key_norm=key.weight.data_ptr() if key else 0,
        all_heads=query is not None and query.weight.numel() > key_size, epsilon=bits_of(query.epsilon) if query else 0,
        sinks=0 if sinks is None else sinks.data_ptr(), rows=_address(rows), slots=_address(nodes.slots.numpy()),
        positions=_address(positions), prefix=_address(prefix), tail=_address(tail), beyond=tail.shape[1],
        window=spec.window, longest=nodes.last + 1, keys=keys.data_ptr(), values=values.data_ptr(), places=keys.shape[2],
        value_line=values.stride(2) * values.itemsize, row_lines=row_lines, head_lines=head_lines,
        scaling=bits_of(spec.scaling), softcap=bits_of(spec.softcap),
    )  # fmt: skip
    return run, (nodes, cosines, sines, form)


def is_small(run: LevelRun) -> bool:
    """Is `run` not worth waking other threads for?"""
    return int(run.nodes * run.heads * run.key_size * run.longest) < SMALL


def _lines(slab: Tensor) -> tuple[int, int]:
    """How many lines of one key or value lie between two rows of `slab`, and between two heads: rows of a padded cache overlap."""
    row, head, line, number = slab.stride()
    assert number == 1 and row % line == head % line == 0, f"strides {slab.stride()}"
    return row // line, head // line


def _address(array: Any) -> int:
    assert array.flags.c_contiguous and array.dtype == np.int64
    return int(array.ctypes.data)


@cache
def entry() -> int:
    """The address of what attends."""
    return machine_code(inspect.unwrap(_work))


@compiled
def _work(argument: Any) -> None:
    """Take heads of keys until none is left. Runs on every thread of the team with the same argument."""
    run = level_run(argument)
    group = run.heads // run.kv_heads
    most = max(1, ROWS // group)
    # Rows beyond those of nodes are zeros, so that the last few go through the cache together too.
    height, longest = multiple(most * group, TOGETHER), multiple(run.longest, 16)
    numbers = height * (run.key_size + run.value_size + longest) + 4 * run.key_size + run.value_size + 2 * longest
    numbers += 2 * run.nodes * run.all_heads
    # of queries and of weights, both as bfloat16, where those are multiplied
    tall = height * int(_paired(run))
    numbers += tall * (run.key_size + longest) // 2
    # Each begins with a line of the processor's cache.
    kept = np.empty(numbers + 9 * 16, np.float32)
    # By addresses: numba counts who holds an array that it made, wherever one is handed on, which took a third of the time.
    place: Any = np.int64(kept.ctypes.data)
    queries, place = _room(place, height, run.key_size)
    sums, place = _room(place, height, run.value_size)
    weights, place = _room(place, height, longest)
    turns, place = _room(place, 3, run.key_size)
    lines, place = _room(place, 1, run.key_size + run.value_size)
    line = lines[0]
    factors, place = _room(place, 2, run.nodes * run.all_heads)
    asked, place = _halves(place, tall, run.key_size)
    shares, place = _halves(place, tall, longest)
    if run.all_heads != 0:
        for i in range(run.nodes):
            factors[0, i] = factor_of(run, i, 0, run.heads, turns[0])
            factors[1, i] = factor_of(run, i, run.heads, run.kv_heads, turns[0])
    addresses = carray(int64_at(multiple(place, 64)), run.longest)
    while True:
        head = take(argument)
        if head >= run.kv_heads:
            break
        for i in range(run.nodes * run.keys_made):
            keep(run, i, head, factors, turns, line)
        # no literal, for which numba would compile all that follows once more
        start: Any = np.int64(0)
        while start < run.nodes:
            end = _of_a_row(run, start, min(start + most, run.nodes))
            used = (end - start) * group
            for r in range(used):
                turn(run, start + r // group, head * group + r % group, factors, turns, queries[r])
            queries[used:], sums[:] = np.float32(0), np.float32(0)
            for r in range(tall):
                write(queries[r], asked[r].ctypes.data, 2)
            # keys, then values: one call for both, since numba puts the whole of it wherever it is called
            for scoring in range(1, -1, -1):
                rows, halves = (queries, asked) if scoring else (sums, shares)
                _through(run, start, end, head, rows, weights, halves, addresses, scoring)
                for r in range(used * scoring):
                    low, high = _seen(run, start + r // group)
                    if run.softcap != 0:
                        capped(weights[r], low, high, float_of(run.softcap))
                    softmax(weights[r], low, high, _sink(run, head * group + r % group))
                    if tall != 0:
                        write(weights[r, low : high + 1], shares[r, low:].ctypes.data, 2)
            for r in range(used):
                if run.gated != 0:
                    opened(run, start + r // group, head * group + r % group, line[: run.value_size], sums[r])
                offset = ((start + r // group) * run.heads + head * group + r % group) * run.value_size * run.itemsize
                write(sums[r], run.out + offset, run.itemsize)
            start = end
    # numba drops what is not named any more
    kept[0] = np.float32(0)


@compiled
def _room(place: int, rows: int, columns: int) -> Any:
    """Room for numbers [rows, columns] from the next multiple of 64 bytes after `place`, and the place behind it."""
    place = multiple(place, 64)
    return carray(float32_at(place), (rows, columns)), place + rows * columns * 4


@compiled
def _halves(place: int, rows: int, columns: int) -> Any:
    """The same for bits of bfloat16."""
    place = multiple(place, 64)
    return carray(uint16_at(place), (rows, columns)), place + rows * columns * 2


@compiled
def _paired(run: Any) -> Any:
    """Does one instruction multiply pairs of its keys, and of its values?"""
    return PAIRS and run.cache_itemsize == 2 and run.key_size % STEP == 0 and run.value_size % STEP == 0


@compiled
def _sink(run: Any, head: int) -> Any:
    """One more score of `head`; -inf: there is none."""
    return carray(float32_at(run.sinks), run.heads)[head] if run.sinks != 0 else np.float32(-np.inf)


@compiled
def _seen(run: Any, i: int) -> Any:
    """The first and the last position that node i sees."""
    high = carray(int64_at(run.positions), run.nodes)[i]
    return max(0, high + 1 - run.window) if run.window > 0 else 0, high


@compiled
def _of_a_row(run: Any, start: int, end: int) -> int:
    """Where the nodes from `start` on that are of one row of the cache end, at `end` at the latest."""
    rows = carray(int64_at(run.rows), run.nodes)
    for i in range(start + 1, end):
        if rows[i] != rows[start]:
            return i
    return end


@compiled
def _shared(run: Any, start: int, end: int) -> Any:
    """The first position that nodes from `start` to `end` all see in the prefix of their row, and the one after the last, both
    even, so that no pair is cut; both lie behind all that they see where there is none."""
    prefix = carray(int64_at(run.prefix), run.nodes)
    first, after = 0, run.longest
    for i in range(start, end):
        low, high = _seen(run, i)
        first, after = max(first, low), min(after, min(prefix[i], high + 1))
    first, after = (first + 1) // 2 * 2, after // 2 * 2
    if after <= first:
        return run.longest, run.longest
    return first, after


@compiled
def _through(
    run: Any, start: int, end: int, head: int, lines: Any, weights: Any, halves: Any, addresses: Any, scoring: int
) -> None:
    """Go through the positions that nodes from `start` to `end` see, first those that only some see, then those of all, then what
    each has beyond: so a node's sums are in the order of positions, whatever others see.

    `scoring`: `weights` [rows, positions] become the products of keys with `lines` [rows, key size]; else values by weights are
    added to `lines`. Each node has as many rows as query heads share a head of keys. `halves`: queries, or else weights, as
    bfloat16, where pairs are multiplied. `addresses` is room [positions]."""
    group, count = run.heads // run.kv_heads, end - start
    first, after = _shared(run, start, end)
    for visit in range(2 * count + 1):
        i, row, rows, begin, stop = start, 0, multiple(count * group, TOGETHER), first, after
        if visit != count:
            i = start + visit % (count + 1)
            low, high = _seen(run, i)
            row, rows = (i - start) * group, group
            begin = low if visit < count else max(low, after)
            stop = min(first, high + 1) if visit < count else high + 1
        if begin < stop:
            there = addresses[begin:stop]
            _addresses(run, i, head, begin, scoring, there)
            part = weights[row : row + rows, begin:stop]
            if scoring and halves.shape[0] != 0:
                score_pairs(there, halves[row : row + rows], float_of(run.scaling), part)
            elif halves.shape[0] != 0:
                weigh_pairs(there, begin % 2, part, halves[row : row + rows, begin:stop], lines[row : row + rows])
            elif scoring:
                score(there, run.cache_itemsize, lines[row : row + rows], float_of(run.scaling), part)
            else:
                weigh(there, run.cache_itemsize, part, lines[row : row + rows])


@compiled
def _addresses(run: Any, i: int, head: int, begin: int, scoring: int, out: Any) -> None:
    """Where keys (`scoring`), or values, of `head` lie that node i sees at the positions from `begin` on."""
    prefix, tail = carray(int64_at(run.prefix), run.nodes)[i], carray(int64_at(run.tail), (run.nodes, run.beyond))
    row = carray(int64_at(run.rows), run.nodes)[i]
    width = width_of(run.key_size, run.cache_itemsize) if scoring else run.value_line
    first = (run.keys if scoring else run.values) + (row * run.row_lines + head * run.head_lines) * width
    for j in range(out.shape[0]):
        position = begin + j
        slot = position if position < prefix else tail[i, position - prefix]
        # a division would take longer than the rest
        place = slot if slot < run.places else slot % run.places
        out[j] = first + place * width
