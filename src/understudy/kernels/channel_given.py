"""Steps of a state whose decays are given, one for each channel of a key (KDA): threads take columns of heads (`channel_cpu.py`).

What a step reads it reads of the state before it, by the decayed key and query, so that a state which nobody goes on from is not
made."""

from typing import Any

import numpy as np
from numba.np import numpy_support

from .channel_order import ADDRESS, COLUMNS, INTO, LOAD, NODE, PLACE, SAVE, SOURCE
from .channel_vectors import advance_rows
from .compiled import contracted
from .descriptor import LINE, channel_run
from .numbers import multiple, padded
from .team import float32_at, int64_at, take
from .vector import prefetch
from .weighted import BLOCK, LANES, combine_rows, dots

carray: Any = numpy_support.carray


@contracted
def step_given(argument: Any) -> None:
    """Step BLOCK columns of one head of one row after another, until none is left."""
    run = channel_run(argument)
    size = run.key_size
    blocks = (run.value_size + BLOCK - 1) // BLOCK
    pieces, firsts = run.value_heads * blocks, carray(int64_at(run.firsts), run.rows + 1)
    # weights of both reads, their sums, the update, and a product; then the states that are held
    aside = 2 * size + 3 * BLOCK + LANES
    room = np.empty(LANES + multiple(aside, LANES) + run.held * size * BLOCK, np.float32)
    base = multiple(room.ctypes.data, LINE)
    states = base + 4 * multiple(aside, LANES)
    while True:
        piece = take(argument)
        if piece >= run.rows * pieces:
            break
        row, part = piece // pieces, piece % pieces
        for i in range(firsts[row], firsts[row + 1]):
            if i + 1 < firsts[row + 1]:
                _given_ahead(run, run.steps + (i + 1) * COLUMNS * 8, part // blocks, part % blocks * BLOCK)
            _given_step(run, run.steps + i * COLUMNS * 8, part // blocks, part % blocks * BLOCK, base, states)
    # numba drops what is not named any more
    room[0] = np.float32(0)


@contracted
def _given_step(run: Any, at: int, head: int, first: int, base: int, states: int) -> None:
    """One step of the columns of a head from `first` on. base: room for what a step computes with."""
    order = carray(int64_at(at), COLUMNS)
    size, width, node = run.key_size, run.value_size, order[NODE]
    columns, each = min(BLOCK, width - first), size * BLOCK * 4
    into, save = states + order[INTO] * each, order[SAVE]
    corner = (head * size * width + first) * 4
    if node == LOAD:
        for k in range(size):
            padded(order[ADDRESS] + corner + k * width * 4, columns, into + k * BLOCK * 4, BLOCK)
        return
    update = base + (2 * size + 2 * BLOCK) * 4
    shared, place = run.value_heads // run.key_heads, order[PLACE] * run.value_heads + head
    record = run.keys + (order[PLACE] * run.key_heads + head // shared) * size * 4
    key, decay, values = record, run.decays + place * size * 4, run.updates + (place * width + first) * 4
    if node >= 0:
        own = node * run.value_heads + head
        key = run.key + (node * run.key_heads + head // shared) * size * 4
        decay = run.decay + own * size * 4
        _read_given(run, own, first, states + order[SOURCE] * each, key, decay, base)
        padded(update, columns, values, columns)
        if first == 0:
            padded(decay, size, run.decays + place * size * 4, size)
            if head % shared == 0:
                padded(key, size, record, size)
    else:
        padded(values, columns, update, BLOCK)
    if order[INTO] >= 0:
        advance_rows(states + order[SOURCE] * each, into, size, decay, key, update)
    if save >= 0:
        for k in range(size):
            padded(into + k * BLOCK * 4, columns, int64_at(run.saves)[save] + corner + k * width * 4, columns)


@contracted
def _given_ahead(run: Any, at: int, head: int, first: int) -> None:
    """Ask memory for what a step will read and write of the columns of a head from `first` on: nodes lie far apart in it."""
    order = carray(int64_at(at), COLUMNS)
    size, width, node = run.key_size, run.value_size, order[NODE]
    lines, few = (size * 4 + LINE - 1) // LINE, (min(BLOCK, width - first) * 4 + LINE - 1) // LINE
    shared = run.value_heads // run.key_heads
    for brought in range(2):
        index = order[PLACE] if brought == 0 else node
        if index < 0:
            continue
        key, own = (index * run.key_heads + head // shared) * size * 4, index * run.value_heads + head
        prefetch((run.keys if brought == 0 else run.key) + key, lines)
        prefetch((run.decays if brought == 0 else run.decay) + own * size * 4, lines)
        prefetch((run.updates if brought == 0 else run.value) + (own * width + first) * 4, few)
        if brought == 1:
            prefetch(run.query + key, lines)
            prefetch(run.out + (own * width + first) * 4, few)


@contracted
def _read_given(run: Any, own: int, first: int, source: int, key: int, decay: int, base: int) -> None:
    """What the state after a step gives at its query, by the state before it; what the step adds goes to its place after `base`.

    own: the node's number times the heads of values, and the head."""
    size, width = run.key_size, run.value_size
    columns, heads = min(BLOCK, width - first), run.value_heads
    query = run.query + (own // heads * run.key_heads + own % heads // (heads // run.key_heads)) * size * 4
    weights = carray(float32_at(base), 2 * size)
    keys, queries, left = carray(float32_at(key), size), carray(float32_at(query), size), carray(float32_at(decay), size)
    for k in range(size):
        weights[k] = left[k] * queries[k]
    for k in range(size):
        weights[size + k] = left[k] * keys[k]
    sums = carray(float32_at(base + 2 * size * 4), 2 * BLOCK)
    update = carray(float32_at(base + (2 * size + 2 * BLOCK) * 4), BLOCK)
    combine_rows(source, size, base, 2, size, base + 2 * size * 4, BLOCK)
    values = carray(float32_at(run.value + (own * width + first) * 4), columns)
    for c in range(columns):
        update[c] = values[c]
    for c in range(columns, BLOCK):
        update[c] = np.float32(0)
    if run.beta != 0:
        share = float32_at(run.beta)[own]
        for c in range(columns):
            update[c] = (update[c] - sums[BLOCK + c]) * share
    product = base + (2 * size + 3 * BLOCK) * 4
    dots(key, size, query, 1, product, 0)
    near = float32_at(product)[0]
    out = carray(float32_at(run.out + (own * width + first) * 4), columns)
    for c in range(columns):
        out[c] = sums[c] + near * update[c]
