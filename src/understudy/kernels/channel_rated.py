"""Steps of a state whose decays are made of rates and a step's length (Mamba): threads take channels (`channel_cpu.py`)."""

from typing import Any

import numpy as np
from numba.np import numpy_support

from .channel_order import ADDRESS, COLUMNS, INTO, LOAD, NODE, PLACE, SAVE, SOURCE
from .channel_vectors import advance_rated
from .compiled import contracted
from .descriptor import LINE, channel_run
from .numbers import multiple, padded
from .team import int64_at, take
from .vector import prefetch
from .weighted import BLOCK, LANES

carray: Any = numpy_support.carray


@contracted
def step_rated(argument: Any) -> None:
    """Step BLOCK channels of one row after another, until none is left."""
    run = channel_run(argument)
    size = multiple(run.key_size, LANES)
    pieces, firsts = (run.value_heads + BLOCK - 1) // BLOCK, carray(int64_at(run.firsts), run.rows + 1)
    # rates; lengths and updates; what is read, with room; key and query; then the states that are held, and one that nobody wants
    aside = BLOCK * size + 2 * BLOCK + (1 + LANES) * BLOCK + 2 * size
    room = np.empty(LANES + aside + (run.held + 1) * BLOCK * size, np.float32)
    base = multiple(room.ctypes.data, LINE)
    while True:
        piece = take(argument)
        if piece >= run.rows * pieces:
            break
        row, first = piece // pieces, piece % pieces * BLOCK
        _rows(run.rates, run, first, base)
        for i in range(firsts[row], firsts[row + 1]):
            if i + 1 < firsts[row + 1]:
                _rated_ahead(run, run.steps + (i + 1) * COLUMNS * 8, first)
            _rated_step(run, run.steps + i * COLUMNS * 8, first, base, base + 4 * aside)
    # numba drops what is not named any more
    room[0] = np.float32(0)


@contracted
def _rows(numbers: int, run: Any, first: int, into: int) -> None:
    """Copy what BLOCK channels from `first` on have of `numbers` [value heads, key size], each padded to whole vectors."""
    size = multiple(run.key_size, LANES)
    if size == run.key_size:
        padded(numbers + first * size * 4, min(BLOCK, run.value_heads - first) * size, into, BLOCK * size)
        return
    for c in range(BLOCK):
        count = run.key_size if first + c < run.value_heads else 0
        padded(numbers + (first + c) * run.key_size * 4, count, into + c * size * 4, size)


@contracted
def _rated_ahead(run: Any, at: int, first: int) -> None:
    """Ask memory for what a step will read and write of the channels from `first` on: nodes lie far apart in it."""
    order = carray(int64_at(at), COLUMNS)
    lines, place = BLOCK * 4 // LINE, (order[PLACE] * run.value_heads + first) * 4
    prefetch(run.decays + place, lines)
    prefetch(run.updates + place, lines)
    if order[NODE] >= 0:
        own = (order[NODE] * run.value_heads + first) * 4
        prefetch(run.decay + own, lines)
        prefetch(run.value + own, lines)
        prefetch(run.out + own, lines)


@contracted
def _rated_step(run: Any, at: int, first: int, base: int, states: int) -> None:
    """One step of the channels from `first` on. base: room for what a step computes with, which begins with rates."""
    order = carray(int64_at(at), COLUMNS)
    key_size, size, node = run.key_size, multiple(run.key_size, LANES), order[NODE]
    channels, each = min(BLOCK, run.value_heads - first), BLOCK * size * 4
    into = states + (order[INTO] if order[INTO] >= 0 else run.held) * each
    if node == LOAD:
        _rows(order[ADDRESS], run, first, into)
        return
    lengths = base + each
    updates, sums = lengths + BLOCK * 4, lengths + 2 * BLOCK * 4
    key = sums + (1 + LANES) * BLOCK * 4
    query, place = key + size * 4, (order[PLACE] * run.value_heads + first) * 4
    if node >= 0:
        own = (node * run.value_heads + first) * 4
        padded(run.decay + own, channels, lengths, BLOCK)
        padded(run.value + own, channels, updates, BLOCK)
        padded(run.key + node * key_size * 4, key_size, key, size)
        padded(run.query + node * key_size * 4, key_size, query, size)
        padded(lengths, channels, run.decays + place, channels)
        padded(updates, channels, run.updates + place, channels)
        if first == 0:
            padded(key, key_size, run.keys + order[PLACE] * key_size * 4, key_size)
    else:
        padded(run.decays + place, channels, lengths, BLOCK)
        padded(run.updates + place, channels, updates, BLOCK)
        padded(run.keys + order[PLACE] * key_size * 4, key_size, key, size)
        padded(key, 0, query, size)
    advance_rated(states + order[SOURCE] * each, into, size // LANES, base, lengths, updates, key, query, sums)
    if node >= 0:
        padded(sums, channels, run.out + (node * run.value_heads + first) * 4, channels)
    if order[SAVE] >= 0:
        there = int64_at(run.saves)[order[SAVE]] + first * key_size * 4
        if size == key_size:
            padded(into, channels * size, there, channels * size)
            return
        for c in range(channels):
            padded(into + c * size * 4, key_size, there + c * key_size * 4, key_size)
