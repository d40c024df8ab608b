"""Attention whose bits depend only on a node's own query and the keys and values it sees, in the order of positions.

Never on how many nodes run beside it, where siblings lie in the cache, or how a prompt was cut: every sum runs over absolute
positions in one fixed order, in blocks of 64. A block that lies wholly in the straight prefix is gathered once for all nodes."""

from typing import Any

import numpy as np

from .compiled import contracted
from .numbers import step_of
from .softmax import softmax
from .weighted import add_rows

BLOCK = 64
# Whether blocks are of keys or of values, and no row. They are no literals, for each of which numba compiles what it is given to
# once more.
KEYS: Any = np.bool_(True)
VALUES: Any = np.bool_(False)
NOBODY = np.int64(-1)


@contracted
def _gather(
    slab: Any, row: int, head: int, prefix: int, tail: Any, span: Any, transposed: bool, bits: Any, block: Any,
) -> None:  # fmt: skip
    """Keys (transposed: [d, 64]) or values ([64, d]) as float32. `span`: the block's first position, and the first and last of
    those that are put there. 16-bit slabs hold bfloat16, bytes are the lines of `small_keys`.

    Slot s lies at place s % places: a layer that looks back at a window has fewer places than the context has slots."""
    places, dim = slab.shape[2], block.shape[0] if transposed else block.shape[1]
    start, first, last = span
    for position in range(first, last + 1):
        j = position - start
        slot = position if position < prefix else tail[position - prefix]
        place = slot % places
        if bits.shape[0] > 0:
            line = bits.view(np.float32)
            if slab.itemsize == 1:
                step = step_of(slab[row, head, place], dim)
                for c in range(dim):
                    line[c] = step * np.float32(np.int8(slab[row, head, place, c]))
            else:
                for c in range(dim):
                    bits[c] = np.uint32(slab[row, head, place, c]) << np.uint32(16)
            if transposed:
                for c in range(dim):
                    block[c, j] = line[c]
            else:
                for c in range(dim):
                    block[j, c] = line[c]
        elif transposed:
            for c in range(dim):
                block[c, j] = slab[row, head, place, c]
        else:
            for c in range(dim):
                block[j, c] = slab[row, head, place, c]


@contracted
def _load(
    slab: Any, row: int, head: int, prefix: int, tail: Any, start: int, last: int, transposed: bool, bits: Any,
    shared: Any, own: Any, held: Any,
) -> Any:  # fmt: skip
    """The block of a node's positions from `start` to `last`, and what is `held` now: the row whose block `shared` is, and the row
    and the prefix whose positions `own` has.

    A block within the prefix is the same for all nodes of a row: gathered whole, once, in `shared`. Others are put in `own`, where
    what nodes of a tree have in common stays."""
    loaded, mine, common = held
    if last >= prefix:
        first = max(start, prefix) if mine == row and common == prefix else start
        _gather(slab, row, head, prefix, tail, (start, first, last), transposed, bits, own)
        return own, (loaded, row, prefix)
    if loaded != row:
        end = start + BLOCK
        _gather(slab, row, head, end, tail, (start, start, end - 1), transposed, bits, shared)
    return shared, (row, mine, common)


@contracted
def _span(position: int, window: int, start: int) -> Any:
    """First and last position that a node sees of the block from `start` on; first > last: none."""
    low = max(0, position + 1 - window) if window > 0 else 0
    return max(low, start), min(position, start + BLOCK - 1)


@contracted
def score(
    query: Any, keys: Any, head: int, first_query: int, seen: Any, how: Any, part: Any, rooms: Any, line: Any
) -> None:  # fmt: skip
    """Scores of a head of `keys` [rows, heads, places, size] with the query heads from `first_query` on, in blocks part[0] up to
    part[1] of 64 positions: line[i, g, part[2] + position].

    seen: rows, positions, prefix and tail of the nodes; how: window, scale and cap; rooms: scratch, as `attend` makes it."""
    rows, positions, prefix, tail = seen
    window, scale, cap = how
    bits, shared, own = rooms
    count, group, dim = line.shape[0], line.shape[1], query.shape[2]
    sums, places = np.empty((group, BLOCK), np.float32), np.arange(dim)
    for b in range(part[0], part[1]):
        start, held = b * BLOCK, (NOBODY, NOBODY, NOBODY)
        place = part[2] + start
        for i in range(count):
            first, last = _span(positions[i], window, start)
            if first > last:
                continue
            block, held = _load(keys, rows[i], head, prefix[i], tail[i], start, last, KEYS, bits, shared, own, held)
            for g in range(group):
                for j in range(BLOCK):
                    sums[g, j] = np.float32(0)
            numbers = query[i, first_query].ctypes.data
            add_rows(block.ctypes.data, places.ctypes.data, dim, BLOCK * 4, numbers, group, dim, sums.ctypes.data, sums.shape[1])
            for g in range(group):
                found = line[i, g, place : place + BLOCK]
                for j in range(BLOCK):
                    found[j] = sums[g, j] * scale
                if cap > 0:
                    for j in range(BLOCK):
                        found[j] = cap * np.tanh(found[j] / cap)


@contracted
def settle(line: Any, positions: Any, window: int, sinks: Any, first_query: int, out: Any) -> None:
    """Make weights of all scores in `line`, in place, and zero the sums in `out`. positions: absolute ones."""
    for i in range(line.shape[0]):
        low = max(0, positions[i] + 1 - window) if window > 0 else 0
        for g in range(line.shape[1]):
            sink = sinks[first_query + g] if sinks.shape[0] > 0 else np.float32(-np.inf)
            softmax(line[i, g], low, positions[i], sink)
            out[i, first_query + g, :] = 0


@contracted
def weigh(
    line: Any, values: Any, head: int, first_query: int, seen: Any, window: int, part: Any, rooms: Any, out: Any
) -> None:  # fmt: skip
    """Add to `out` [n, query heads, size] a head of `values` in blocks part[0] up to part[1], by the weights in `line`.

    Arguments are those of `score`."""
    rows, positions, prefix, tail = seen
    bits, shared, own = rooms
    count, group, size = line.shape[0], line.shape[1], out.shape[2]
    places, apart = np.arange(BLOCK), line.strides[1] // 4
    for b in range(part[0], part[1]):
        start, held = b * BLOCK, (NOBODY, NOBODY, NOBODY)
        place = part[2] + start
        for i in range(count):
            first, last = _span(positions[i], window, start)
            if first > last:
                continue
            block, held = _load(values, rows[i], head, prefix[i], tail[i], start, last, VALUES, bits, shared, own, held)
            weights, lines = line[i, 0, place + first - start :].ctypes.data, block[first - start :].ctypes.data
            sums = out[i, first_query].ctypes.data
            add_rows(lines, places.ctypes.data, last - first + 1, size * 4, weights, group, apart, sums, size)


@contracted
def attend(
    query: Any, keys: Any, values: Any, rows: Any, positions: Any, prefix: Any, tail: Any,
    window: int, scaling: float, softcap: float, sinks: Any, first_head: int, last_head: int, out: Any,
) -> None:  # fmt: skip
    """query: [n, heads, key size] float32; out: [n, heads, value size] float32. keys, values: [rows, kv heads, places, size]
    float32, uint16 holding bfloat16, or uint8: lines of `small_keys`.

    rows, positions, prefix: [n]; tail: [n, t] (see tree.Nodes). window 0: all positions are seen; else the last `window`.
    sinks: [heads] float32, or empty. Serves kv heads first_head..last_head-1."""
    count, heads, dim = query.shape
    size = out.shape[2]
    group = heads // keys.shape[1]
    how = window, np.float32(scaling), np.float32(softcap)
    longest = 0
    for i in range(count):
        longest = max(longest, positions[i] + 1)
    blocks = (longest + BLOCK - 1) // BLOCK
    line = np.empty((count, group, blocks * BLOCK), np.float32)
    bits = np.empty(max(dim, size) if keys.itemsize < 4 else 0, np.uint32)
    scoring = bits, np.zeros((dim, BLOCK), np.float32), np.zeros((dim, BLOCK), np.float32)
    weighing = bits, np.zeros((BLOCK, size), np.float32), np.zeros((BLOCK, size), np.float32)
    seen, part = (rows, positions, prefix, tail), (0, blocks, 0)
    for head in range(first_head, last_head):
        score(query, keys, head, head * group, seen, how, part, scoring, line)
        settle(line, positions, window, sinks, head * group, out)
        weigh(line, values, head, head * group, seen, window, part, weighing, out)
