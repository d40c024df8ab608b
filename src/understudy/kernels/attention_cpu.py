"""Attention whose bits depend only on a node's own query and the keys and values it sees, in the order of positions.

Never on how many nodes run beside it, where siblings lie in the cache, or how a prompt was cut: every sum runs over absolute
positions in one fixed order, in blocks of 64. A block that lies wholly in the straight prefix is gathered once for all nodes."""

from typing import Any

import numpy as np

from .compiled import FIRST, contracted
from .gathered import gather
from .running_softmax import begin, lines, total, weights
from .weighted import BLOCK, LANES, add_rows, combine_rows

# nodes that go through a block together
TOGETHER = 8
# Whether blocks are of keys or of values, and no row or height. They are no literals, for each of which numba compiles what it is
# given to once more.
KEYS: Any = np.bool_(True)
VALUES: Any = np.bool_(False)
NOBODY = np.int64(-1)
# A block of which all places are seen; a score below all others, which a softmax may begin with.
ALL_PLACES = np.uint64(0xFFFFFFFFFFFFFFFF)
LOWEST = np.float32(-3e38)
# Whether weights are bfloat16.
FLOATS: Any = np.bool_(False)


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
        gather(slab, row, head, prefix, tail, (start, first, last), transposed, bits, own)
        return own, (loaded, row, prefix)
    if loaded != row:
        end = start + BLOCK
        gather(slab, row, head, end, tail, (start, start, end - 1), transposed, bits, shared)
    return shared, (row, mine, common)


@contracted
def span(position: int, window: int, start: int) -> Any:
    """First and last position that a node sees of the block from `start` on; first > last: none."""
    low = max(0, position + 1 - window) if window > 0 else 0
    return max(low, start), min(position, start + BLOCK - 1)


@contracted
def _together(i: int, start: int, window: int, seen: Any) -> Any:
    """The nodes from `i` on that go through the block from position `start` on together: the end of them, the first and last
    position of it that all of them see, and whether some see more.

    More than one only where the block lies in the straight prefix of each, in one row, and they see something of it in common."""
    rows, positions, prefix, _, _ = seen
    first, last = span(positions[i], window, start)
    end, more = i + 1, False
    if first > last or last >= prefix[i]:
        return end, first, last, more
    while end < min(i + TOGETHER, len(rows)) and rows[end] == rows[i]:
        low, high = span(positions[end], window, start)
        if low > high or high >= prefix[end] or max(low, first) > min(high, last):
            break
        more = more or low != first or high != last
        first, last, end = max(low, first), min(high, last), end + 1
    return end, first, last, more


@contracted
def state_of(count: int, group: int, size: int, sinks: Any, first_query: int) -> Any:
    """Of `count` nodes, each with `group` query heads from `first_query` on that share a head of keys, before they saw any: the
    highest score, 16 sums of weights and sums of values of `size` numbers for each, and room for how they fade."""
    rows = count * group
    tops, totals = np.empty(rows, np.float32), np.empty((rows, LANES), np.float32)
    begin(tops, totals, sinks[first_query : first_query + group])
    sums = lines(rows, size) if size % LANES == 0 else np.zeros((rows, size), np.float32)
    return tops, totals, sums, np.empty(rows, np.float32)


@contracted
def absorb(
    products: Any, count: int, limits: Any, how: Any, first: int, state: Any, target: int, halves: bool, seen: Any, block: int
) -> None:  # fmt: skip
    """Make weights at the address `target` of the `products` [any, 64] of `count` rows and a block, and let their sums fade
    where they must. A row is a query head of a node, the state's rows from `first` on.

    limits: the first and the last place of the block that they see; how: window, factor of a product, cap of a score and the bias
    of the state's rows (see `attend`); seen: see `add`."""
    tops, totals, sums, fades = state
    _, scale, cap, bias = how
    _, positions, _, _, mask = seen
    group = len(tops) // len(positions)
    if cap > 0:
        # of the whole block: where a loop begins may decide how its numbers are rounded
        for r in range(count):
            for j in range(BLOCK):
                products[r, j] = cap * np.tanh(products[r, j] * scale / cap)
        scale = np.float32(1)
    if bias.shape[2] > 0:
        for r in range(count):
            node = (first + r) // group
            shift(products[r], scale, bias[node, (first + r) % group], positions[node] - block * BLOCK)
        scale = np.float32(1)
    if mask.shape[1] > 0:
        for r in range(count):
            hide(products[r], mask[(first + r) // group, block])
    own = tops.ctypes.data + first * 4, totals.ctypes.data + first * LANES * 4, fades.ctypes.data
    if weights(products.ctypes.data, target, count, limits, scale, own, halves):
        for r in range(count):
            if fades[r] != 1:
                for c in range(sums.shape[1]):
                    sums[first + r, c] *= fades[r]


@contracted
def raise_tops(state: Any, mask: Any) -> None:
    """Let a `state` that has seen nothing begin with a score that is a number, since a block may bring none of which one is."""
    tops = state[0]
    if mask.shape[1] > 0:
        for r in range(len(tops)):
            tops[r] = max(tops[r], LOWEST)


@contracted
def shift(scores: Any, scale: Any, bias: Any, distance: int) -> None:
    """Make `scores` [64] of products that lie up to `distance` positions before a node: bias [extent] has what is added by how far
    a position lies before it, and nothing is added farther away."""
    # a loop of its own, of the whole block: nothing is rounded otherwise where the bias begins
    for j in range(BLOCK):
        scores[j] *= scale
    for j in range(max(0, distance + 1 - len(bias)), min(BLOCK, distance + 1)):
        scores[j] += bias[distance - j]


@contracted
def hide(scores: Any, word: Any) -> None:
    """Make `scores` [64] of places so low that nothing comes of them, but for those whose bit is set in `word`."""
    if word != ALL_PLACES:
        for j in range(BLOCK):
            if (word >> np.uint64(j)) & np.uint64(1) == 0:
                scores[j] = np.float32(-np.inf)


@contracted
def finish(state: Any, first_query: int, out: Any) -> None:
    """Put what the nodes of a `state` attended to in `out` [n, heads, size], at query heads from `first_query` on."""
    _, totals, sums, _ = state
    group = len(sums) // len(out)
    for r in range(len(sums)):
        factor = np.float32(1) / total(totals[r])
        for c in range(out.shape[2]):
            out[r // group, first_query + r % group, c] = sums[r, c] * factor


@contracted
def scratch_of(keys: Any, values: Any, dim: int, size: int, tables: Any) -> Any:
    """What `add` works in, for keys of `dim` numbers and values of `size`: a line, and blocks of both. tables: not needed."""
    bits = np.empty(max(dim, size) if keys.itemsize < 4 else 0, np.uint32)
    ours = lines(2 * dim, BLOCK)
    theirs = lines(2 * BLOCK, size) if size % LANES == 0 else np.zeros((2 * BLOCK, size), np.float32)
    return bits, ours[:dim], ours[dim:], theirs[:BLOCK], theirs[BLOCK:]


@contracted
def add(
    query: Any, keys: Any, values: Any, heads: Any, seen: Any, how: Any, part: Any, scratch: Any, state: Any
) -> None:  # fmt: skip
    """Let nodes attend to a head of `keys` and `values` [rows, heads, places, size], in blocks part[0] up to part[1] of 64
    positions: the next ones that they see.

    heads: that head, and the first of the query heads that share it; seen: rows, positions, prefix, tail and mask of the nodes;
    how: see `absorb`; scratch: see `scratch_of`; state: see `state_of`."""
    rows, positions, prefix, tail, _ = seen
    bits, shared, own, shared_values, own_values = scratch
    head, first_query = heads
    count, dim, sums = len(rows), query.shape[2], state[2]
    group = len(sums) // count
    numbers, scores = np.empty((count, group, dim), np.float32), lines(TOGETHER * group, BLOCK)
    places = np.arange(BLOCK)
    for i in range(count):
        for g in range(group):
            for c in range(dim):
                numbers[i, g, c] = query[i, first_query + g, c]
    for b in range(part[0], part[1]):
        start, end = b * BLOCK, FIRST
        held, held_values = (NOBODY, NOBODY, NOBODY), (NOBODY, NOBODY, NOBODY)
        while end < count:
            i = end
            end, first, last, more = _together(i, start, how[0], seen)
            if first > last:
                continue
            outputs = (end - i) * group
            block, held = _load(keys, rows[i], head, prefix[i], tail[i], start, last, KEYS, bits, shared, own, held)
            combine_rows(block.ctypes.data, dim, numbers[i].ctypes.data, outputs, dim, scores.ctypes.data, BLOCK)
            if more:
                for node in range(i, end):
                    low, high = span(positions[node], how[0], start)
                    own_scores, limits = scores[(node - i) * group :], (low - start, high - start)
                    absorb(own_scores, group, limits, how, node * group, state, own_scores.ctypes.data, FLOATS, seen, b)
            else:
                limits = first - start, last - start
                absorb(scores, outputs, limits, how, i * group, state, scores.ctypes.data, FLOATS, seen, b)
            block, held_values = _load(
                values, rows[i], head, prefix[i], tail[i], start, last, VALUES, bits, shared_values, own_values, held_values
            )
            for node in range(i, end if more else i):
                low, _ = span(positions[node], how[0], start)
                _add(block, places, low - start, first - 1 - start, scores[(node - i) * group :], group, sums[node * group :])
            _add(block, places, first - start, last - start, scores, outputs, sums[i * group :])
            for node in range(i, end if more else i):
                _, high = span(positions[node], how[0], start)
                _add(block, places, last + 1 - start, high - start, scores[(node - i) * group :], group, sums[node * group :])


@contracted
def _add(block: Any, places: Any, first: int, last: int, line: Any, outputs: int, sums: Any) -> None:
    """Add to `sums` the values at places `first` to `last` of a block, by their weights in the `outputs` lines from `line` [g, 64]
    on."""
    if first <= last:
        size = block.shape[1]
        given, rows = line[0, first:].ctypes.data, block[first:].ctypes.data
        add_rows(rows, places.ctypes.data, last - first + 1, size * 4, given, outputs, BLOCK, sums.ctypes.data, size)


@contracted
def attend(
    query: Any, keys: Any, values: Any, rows: Any, positions: Any, prefix: Any, tail: Any, mask: Any, bias: Any,
    window: int, scaling: float, softcap: float, sinks: Any, first_head: int, last_head: int, out: Any, tables: Any,
) -> None:  # fmt: skip
    """query: [n, heads, key size] float32; out: [n, heads, value size] float32. keys, values: [rows, kv heads, places, size]
    float32, uint16 holding bfloat16, or uint8: lines of `small_keys`.

    rows, positions, prefix: [n]; tail: [n, t] (see tree.Nodes). mask: [1 or kv heads, n, blocks] uint64: bit j of word b is
    set where position 64 * b + j is seen, if the node sees it at all; [1, n, 0]: all are. bias: [n, heads, extent] float32, what is
    added to the score of a position by how far it lies before the node; nothing is from `extent` on. window 0: all positions are
    seen; else the last `window`. sinks: [heads] float32, or empty. Serves kv heads first_head..last_head-1. tables: as `scratch_of`
    takes them."""
    group, size = query.shape[1] // keys.shape[1], out.shape[2]
    scratch = scratch_of(keys, values, query.shape[2], size, tables)
    for head in range(first_head, last_head):
        first_query, own = head * group, mask[min(head, len(mask) - 1)]
        how = window, np.float32(scaling), np.float32(softcap), bias[:, first_query : first_query + group]
        seen = rows, positions, prefix, tail, own
        state = state_of(len(query), group, size, sinks, first_query)
        raise_tops(state, own)
        add(query, keys, values, (head, first_query), seen, how, (0, blocks_of(positions)), scratch, state)
        finish(state, first_query, out)


@contracted
def blocks_of(positions: Any) -> Any:
    """Blocks of 64 positions that nodes at `positions` may see."""
    longest = 0
    for i in range(len(positions)):
        longest = max(longest, positions[i] + 1)
    return (longest + BLOCK - 1) // BLOCK
