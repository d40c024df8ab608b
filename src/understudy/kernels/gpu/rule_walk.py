"""The second half of the rule of recurrent layers on a GPU (`rule`): a walk over the nodes of a row, folding on its way."""

import triton
import triton.language as tl

from .node_paths import row_of
from .rule_weights import decay_of, factors_of

FOLD = tl.constexpr(64)


@triton.jit(
    do_not_specialize=["count", "places", "fold_row", "fold_number"],
    do_not_specialize_on_alignment=["query", "key", "value", "decay", "beta", "rows", "slots", "positions", "paths"],
)
def walk(
    query, key, value, decay, beta, products, left, whole, keys, values, decays, states, rows, slots, positions, paths,
    updates, out, count, places, fold_row, fold_number,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, READS: tl.constexpr, SPAN: tl.constexpr,
    ALONE: tl.constexpr, BY_CHANNEL: tl.constexpr, NUMBERS: tl.constexpr, BLOCK: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """Some numbers of one head's values: all nodes of a row in their order, or one node ALONE. `fold_number` that is not negative:
    no nodes, but that state of `fold_row`."""
    head = tl.program_id(1)
    if ALONE:
        first = tl.program_id(0).to(tl.int64)
        row, end = tl.load(rows + first), first + 1
    else:
        row, first, end = row_of(tl.program_id(0).to(tl.int64), rows, count)
        if fold_number >= 0:
            _fold(
                fold_row, fold_number, -(1 << 40), first, key, decay, keys, values, decays, states, updates, places, head,
                KEY_HEADS, GROUP, SIZE, C, BY_CHANNEL, NUMBERS, BLOCK, STRETCH,
            )  # fmt: skip
    for node in range(first, end):
        slot, position = tl.load(slots + node), tl.load(positions + node)
        # what a prompt's nodes read from here on; in a tree it is folded already, and comes to the same
        if (node > first) & (slot == position) & (position % FOLD == 0) & (position >= 2 * FOLD):
            _fold(
                row, position // FOLD - 2, node - position, first, key, decay, keys, values, decays, states, updates, places, head,
                KEY_HEADS, GROUP, SIZE, C, BY_CHANNEL, NUMBERS, BLOCK, STRETCH,
            )  # fmt: skip
        _visit(
            node, row, slot, position, query, key, value, beta, products, left, whole, values, states, paths, updates,
            out, places, head, KEY_HEADS, GROUP, SIZE, C, READS, SPAN, ALONE, BY_CHANNEL, NUMBERS, BLOCK,
        )  # fmt: skip


@triton.jit
def _visit(
    node, row, slot, position, query, key, value, beta, products, left, whole, values, states, paths, updates,
    out, places, head, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr,
    READS: tl.constexpr, SPAN: tl.constexpr, ALONE: tl.constexpr, BY_CHANNEL: tl.constexpr, NUMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What one node reads of a head, and its update."""
    heads = KEY_HEADS * GROUP
    number = tl.maximum(position // FOLD - 1, 0)
    c, v, p = tl.arange(0, C), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, SPAN)
    lines = states + ((row * 2 + number % 2) * heads + head) * SIZE * NUMBERS
    state = tl.load(lines + c[:, None] * NUMBERS + v[None, :], (c[:, None] < SIZE) & (v[None, :] < NUMBERS), other=0)
    at = number * FOLD + p
    seen = at <= position
    path = tl.load(paths + node * SPAN + p, at < position, other=0)
    fresh = (path < 0)[:, None]
    before = (at < position)[:, None] & (v[None, :] < NUMBERS)
    old = values + (path * heads + head)[:, None] * NUMBERS + v[None, :]
    written = tl.load(old, before & ~fresh, other=0)
    if not ALONE:
        new = updates + ((-1 - path) * heads + head)[:, None] * NUMBERS + v[None, :]
        written = tl.where(fresh, tl.load(new, before & fresh, other=0, cache_modifier=".cg"), written)
    if BY_CHANNEL:
        rest, all_of_it = 1.0, tl.load(whole + (node * heads + head) * SIZE + c, c < SIZE, other=0)[:, None]
    else:
        rest, all_of_it = tl.load(left + (node * heads + head) * SPAN + p, seen, other=0), tl.load(whole + node * heads + head)
    line = node * KEY_HEADS + head // GROUP
    ours, mine = products + line * READS * SPAN, (node * heads + head) * NUMBERS + v
    update = tl.load(value + mine, v < NUMBERS, other=0)
    if READS == 2:
        own = tl.load(key + line * SIZE + c, c < SIZE, other=0)
        weights = tl.load(ours + SPAN + p, seen, other=0) * rest
        found = tl.sum(state * all_of_it * own[:, None], 0) + tl.sum(written * weights[:, None], 0)
        update = tl.load(beta + node * heads + head) * (update - found)
    asked = tl.load(query + line * SIZE + c, c < SIZE, other=0)
    weights = tl.load(ours + p, seen, other=0) * rest
    found = tl.sum(state * all_of_it * asked[:, None], 0) + tl.sum(written * weights[:, None], 0)
    # what is left of the node's own record is all of it
    share = tl.sum(tl.where(at == position, weights, 0.0), 0)
    tl.store(out + mine, found + share * update, v < NUMBERS)
    tl.store(updates + mine, update, v < NUMBERS)
    tl.store(values + ((row * places + slot % places) * heads + head) * NUMBERS + v, update, v < NUMBERS)
    if not ALONE:
        # other threads of this program read it next
        tl.debug_barrier()


@triton.jit
def _fold(
    row, number, beside, first, key, decay, keys, values, decays, states, updates, places, head, KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, BY_CHANNEL: tl.constexpr, NUMBERS: tl.constexpr, BLOCK: tl.constexpr,
    STRETCH: tl.constexpr,
):  # fmt: skip
    """Make state `number` + 1 of `row`, of which the token at position p is node p + `beside`, if that is `first` or later."""
    heads = KEY_HEADS * GROUP
    c, v, j = tl.arange(0, C), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STRETCH)
    lines = head * SIZE * NUMBERS + c[:, None] * NUMBERS + v[None, :]
    inside = (c[:, None] < SIZE) & (v[None, :] < NUMBERS)
    size = heads * SIZE * NUMBERS
    state = tl.load(states + (row * 2 + number % 2) * size + lines, inside, other=0)
    for stretch in range(FOLD // STRETCH):
        at = number * FOLD + stretch * STRETCH + j.to(tl.int64)
        fresh = at + beside >= first
        key_lines = tl.where(fresh, at + beside, row * places + at % places) * KEY_HEADS + head // GROUP
        value_lines = tl.where(fresh, at + beside, row * places + at % places) * heads + head
        new, old = fresh[:, None] & (c[None, :] < SIZE), ~fresh[:, None] & (c[None, :] < SIZE)
        lane = key_lines[:, None] * SIZE + c[None, :]
        k = tl.where(fresh[:, None], tl.load(key + lane, new, other=0), tl.load(keys + lane, old, other=0))
        new, old = fresh[:, None] & (v[None, :] < NUMBERS), ~fresh[:, None] & (v[None, :] < NUMBERS)
        lane = value_lines[:, None] * NUMBERS + v[None, :]
        written = tl.load(updates + lane, new, other=0, cache_modifier=".cg")
        written = tl.where(fresh[:, None], written, tl.load(values + lane, old, other=0))
        after = at + 1 + beside >= first
        if BY_CHANNEL:
            d = factors_of(decay, decays, row, j < STRETCH, fresh, at + beside, at % places, places, head, heads, SIZE, C)
            behind = factors_of(
                decay, decays, row, j < STRETCH - 1, after, at + 1 + beside, (at + 1) % places, places, head, heads, SIZE, C
            )
            rest = tl.cumprod(behind, 0, reverse=True)
            k *= rest
            state *= tl.sum(tl.where(j[:, None] == 0, rest * d, 0.0), 0)[:, None]
        else:
            d = decay_of(decay, decays, row, j < STRETCH, fresh, at + beside, at % places, places, head, heads)
            behind = decay_of(
                decay, decays, row, j < STRETCH - 1, after, at + 1 + beside, (at + 1) % places, places, head, heads
            )
            rest = tl.cumprod(behind, 0, reverse=True)
            k *= rest[:, None]
            state *= tl.sum(tl.where(j == 0, rest * d, 0.0), 0)
        state += tl.dot(tl.trans(k), written, input_precision="ieee")
    tl.store(states + (row * 2 + (number + 1) % 2) * size + lines, state, inside)
    tl.debug_barrier()
