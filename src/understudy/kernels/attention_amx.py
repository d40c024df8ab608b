"""Attention as in `attention_cpu`, of bfloat16 by AMX: for processors that multiply tiles.

Queries, keys and values are the model's own bfloat16, and weights are rounded to it, as by stock attention; sums are float32, over
absolute positions in the order of `amx_dot`, in blocks of 64. What a node does not see of a block counts as zero, so its bits
depend on no other node."""

from typing import Any

import numpy as np

from .amx_dot import ROWS, amx_products, amx_sums, configure, release, shapes
from .attention_cpu import NOBODY, absorb, blocks_of, finish, raise_tops, span, state_of
from .compiled import FIRST, contracted
from .paired import locate, pair_keys, pair_values
from .running_softmax import lines
from .weighted import BLOCK

# Whether weights are bfloat16. It is no literal, see `attention_cpu`.
HALVES: Any = np.bool_(True)


def registers(columns: int) -> Any:
    """[16, 64] bytes: what `configure` reads for products of 1 to 16 rows with `columns` columns, or a multiple of 32."""
    return np.stack([np.frombuffer(shapes(rows, columns), np.uint8) for rows in range(1, ROWS + 1)])


@contracted
def scratch_of(keys: Any, values: Any, dim: int, size: int, tables: Any) -> Any:
    """What `add` works in: a block of keys, in pairs of numbers; one of values, 64 numbers at a time; products of 16 rows, and
    weights; tables: `registers` of `dim`."""
    pieces = (size + BLOCK - 1) // BLOCK
    pairs, values_pairs = lines(dim // 2, BLOCK).view(np.uint16), lines(pieces * BLOCK // 2, BLOCK).view(np.uint16)
    halves = lines(ROWS, BLOCK // 2).view(np.uint16)
    given = pairs, values_pairs.reshape(pieces, BLOCK * BLOCK), np.empty(BLOCK, np.int64), np.zeros(max(dim, size), np.uint16)
    return *given, lines(ROWS, BLOCK), halves, tables


@contracted
def _together(i: int, start: int, window: int, seen: Any) -> Any:
    """The nodes from `i` on that go through the block from position `start` on together: the end of them, and the first and last
    position of it that node `i` sees. More than one only where each, in one row, sees all of it, in its straight prefix."""
    rows, positions, prefix, _, _ = seen
    first, last = span(positions[i], window, start)
    end = i + 1
    if last - first < BLOCK - 1 or last >= prefix[i]:
        return end, first, last
    while end < len(rows) and rows[end] == rows[i]:
        low, high = span(positions[end], window, start)
        if high - low < BLOCK - 1 or high >= prefix[end]:
            break
        end += 1
    return end, first, last


@contracted
def _pair(keys: Any, values: Any, node: Any, head: int, start: int, limits: Any, scratch: Any, held: Any) -> Any:
    """Put the block of what a node sees in the scratch. Returns what is `held` then: the row of which all keys of the block are
    there, as far as they are its straight prefix, and the one of which all values are.

    node: its row, prefix and tail; limits: the first and last position that it sees."""
    row, prefix, tail = node
    pairs, values_pairs, sources, zeros = scratch[:4]
    first, last = limits
    of_keys, of_values = held
    nothing = zeros.ctypes.data
    if last >= prefix or of_keys != row:
        straight = last < prefix
        shown = (start, start + BLOCK - 1) if straight else limits
        locate(keys, row, head, start + BLOCK if straight else prefix, tail, start, shown, nothing, sources)
        pair_keys(sources, keys.shape[3], pairs)
        of_keys = row if straight else NOBODY
    whole = last - first == BLOCK - 1 and last < prefix
    if not whole or of_values != row:
        locate(values, row, head, prefix, tail, start, limits, nothing, sources)
        pair_values(sources, values.shape[3], values_pairs)
        of_values = row if whole else NOBODY
    return of_keys, of_values


@contracted
def add(
    query: Any, keys: Any, values: Any, heads: Any, seen: Any, how: Any, part: Any, scratch: Any, state: Any
) -> None:  # fmt: skip
    """`attention_cpu.add`, of bfloat16; query: float32 that are such."""
    rows, _, prefix, tail, _ = seen
    pairs, values_pairs, _, _, scores, halves, tables = scratch
    head, first_query = heads
    count, dim, sums = len(rows), query.shape[2], state[2]
    group, size = len(sums) // count, sums.shape[1]
    width = (dim + 31) // 32 * 32
    bits, numbers = query.view(np.uint32), lines(len(sums), width // 2).view(np.uint16)
    for r in range(len(sums)):
        for c in range(dim):
            numbers[r, c] = bits[r // group, first_query + r % group, c] >> np.uint32(16)
    height = NOBODY
    for b in range(part[0], part[1]):
        start, end, held = b * BLOCK, FIRST, (NOBODY, NOBODY)
        while end < count:
            i = end
            end, first, last = _together(i, start, how[0], seen)
            if first > last:
                continue
            node = rows[i], prefix[i], tail[i]
            held = _pair(keys, values, node, head, start, (first, last), scratch, held)
            for r in range(i * group, end * group, ROWS):
                tall = min(end * group - r, ROWS)
                if tall != height:
                    configure(tables[tall - 1].ctypes.data)
                    height = tall
                x = numbers.ctypes.data + r * width * 2
                amx_products(pairs.ctypes.data, dim, x, width * 2, scores.ctypes.data, BLOCK * 4)
                limits = first - start, last - start
                absorb(scores, tall, limits, how, r, state, halves.ctypes.data, HALVES, seen, b)
                there = sums.ctypes.data + r * size * 4
                for piece in range(values_pairs.shape[0]):
                    block = values_pairs[piece].ctypes.data
                    amx_sums(block, BLOCK, halves.ctypes.data, BLOCK * 2, there + piece * BLOCK * 4, size * 4)
    release()


@contracted
def attend(
    query: Any, keys: Any, values: Any, rows: Any, positions: Any, prefix: Any, tail: Any, mask: Any, bias: Any,
    window: int, scaling: float, softcap: float, sinks: Any, first_head: int, last_head: int, out: Any, tables: Any,
) -> None:  # fmt: skip
    """`attention_cpu.attend`, of bfloat16 queries, keys and values. tables: `registers` of the size of keys."""
    group, size = query.shape[1] // keys.shape[1], (out.shape[2] + BLOCK - 1) // BLOCK * BLOCK
    scratch = scratch_of(keys, values, query.shape[2], out.shape[2], tables)
    for head in range(first_head, last_head):
        first_query, own = head * group, mask[min(head, len(mask) - 1)]
        how = window, np.float32(scaling), np.float32(softcap), bias[:, first_query : first_query + group]
        seen = rows, positions, prefix, tail, own
        state = state_of(len(query), group, size, sinks, first_query)
        raise_tops(state, own)
        add(query, keys, values, (head, first_query), seen, how, (0, blocks_of(positions)), scratch, state)
        finish(state, first_query, out)
