"""The first half of the rule of recurrent layers on a GPU (`rule`): what nodes read at times the keys on their paths, and what is
left of each record."""

import triton
import triton.language as tl

from .node_paths import path_of

FOLD = tl.constexpr(64)


@triton.jit(
    do_not_specialize=["width", "places"],
    do_not_specialize_on_alignment=["query", "key", "decay", "rows", "slots", "positions", "prefixes", "tail"],
)
def weigh(
    query, key, decay, keys, decays, rows, slots, positions, prefixes, tail, products, left, whole, paths, width, places,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, READS: tl.constexpr, SPAN: tl.constexpr,
    ALONE: tl.constexpr, BY_CHANNEL: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What one node reads at times some keys on its path, its own included; the last program of a node and a head of keys says what
    is left of each record, and puts the node's own."""
    node, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, slot, position = tl.load(rows + node), tl.load(slots + node), tl.load(positions + node)
    base = tl.maximum(position // FOLD - 1, 0) * FOLD
    c = tl.arange(0, C)
    mine = (node * KEY_HEADS + head) * SIZE + c
    own = tl.load(key + mine, c < SIZE, other=0)
    if part < PARTS:
        p = part * TILE + tl.arange(0, TILE)
        seen, fresh, index, place = path_of(base + p, node, row, slot, position, prefixes, tail, width, rows, slots, places, ALONE)
        if head == 0:
            tl.store(paths + node * SPAN + p, tl.where(fresh, -1 - index, row * places + place), seen)
        old = keys + ((row * places + place) * KEY_HEADS + head)[:, None] * SIZE + c[None, :]
        new = key + (index * KEY_HEADS + head)[:, None] * SIZE + c[None, :]
        held = tl.load(old, (seen & ~fresh)[:, None] & (c[None, :] < SIZE), other=0)
        held = tl.where(fresh[:, None], tl.load(new, fresh[:, None] & (c[None, :] < SIZE), other=0), held)
        if BY_CHANNEL:
            held *= _faded(
                node, head, part, row, slot, position, base, decay, decays, whole, rows, slots, prefixes, tail, width, places,
                KEY_HEADS, SIZE, C, ALONE, PARTS, TILE,
            )  # fmt: skip
        asked = tl.load(query + mine, c < SIZE, other=0)
        into = products + (node * KEY_HEADS + head) * READS * SPAN + p
        tl.store(into, tl.sum(held * asked[None, :], 1), seen)
        if READS == 2:
            tl.store(into + SPAN, tl.sum(held * own[None, :], 1), seen)
    else:
        tl.store(keys + ((row * places + slot % places) * KEY_HEADS + head) * SIZE + c, own, c < SIZE)
        if BY_CHANNEL:
            kept = tl.load(decay + mine, c < SIZE, other=0)
            tl.store(decays + ((row * places + slot % places) * KEY_HEADS + head) * SIZE + c, kept, c < SIZE)
        else:
            _remain(
                node, head, row, slot, position, base, decay, decays, rows, slots, prefixes, tail, left, whole, width, places,
                KEY_HEADS, GROUP, SPAN, ALONE,
            )  # fmt: skip


@triton.jit
def _faded(
    node, head, part, row, slot, position, base, decay, decays, whole, rows, slots, prefixes, tail, width, places,
    HEADS: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, ALONE: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What is left of each channel of some records on the path of a node, its own factors included. The first part says what is
    left of a state before all of them."""
    p, c, zero = tl.arange(0, TILE), tl.arange(0, C), tl.zeros([1], tl.int64)
    rest = tl.full([1, C], 1.0, tl.float32)
    for later in range(part + 1, PARTS):
        seen, fresh, index, place = path_of(
            base + 1 + later * TILE + p, node, row, slot, position, prefixes, tail, width, rows, slots, places, ALONE
        )
        d = factors_of(decay, decays, row, seen, fresh, index, place, places, head, HEADS, SIZE, C)
        rest *= tl.sum(tl.where(p[:, None] == 0, tl.cumprod(d, 0, reverse=True), 0.0), 0)[None, :]
    seen, fresh, index, place = path_of(
        base + 1 + part * TILE + p, node, row, slot, position, prefixes, tail, width, rows, slots, places, ALONE
    )
    d = factors_of(decay, decays, row, seen, fresh, index, place, places, head, HEADS, SIZE, C)
    left = tl.cumprod(d, 0, reverse=True) * rest
    if part == 0:
        _, fresh0, index0, place0 = path_of(
            base + zero, node, row, slot, position, prefixes, tail, width, rows, slots, places, ALONE
        )
        first = factors_of(decay, decays, row, zero == 0, fresh0, index0, place0, places, head, HEADS, SIZE, C)
        all_of_it = tl.sum(tl.where(p[:, None] == 0, left, 0.0), 0) * tl.sum(first, 0)
        tl.store(whole + (node * HEADS + head) * SIZE + c, all_of_it, c < SIZE)
    return left


@triton.jit
def factors_of(
    decay, decays, row, seen, fresh, index, place, places, head, HEADS: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """The factors of each channel of records that are `seen`; 1 in the place of others."""
    c = tl.arange(0, C)[None, :]
    old = tl.load(
        decays + ((row * places + place) * HEADS + head)[:, None] * SIZE + c, (seen & ~fresh)[:, None] & (c < SIZE), other=1.0
    )
    new = tl.load(decay + (index * HEADS + head)[:, None] * SIZE + c, (seen & fresh)[:, None] & (c < SIZE), other=1.0)
    return tl.where(fresh[:, None], new, old)


@triton.jit
def _remain(
    node, head, row, slot, position, base, decay, decays, rows, slots, prefixes, tail, left, whole, width, places,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """What is left of each record on the path of a node, and of a state before all of them, for each head that one of keys serves;
    the node's own factors are put."""
    p, zero, heads = tl.arange(0, SPAN), tl.zeros([1], tl.int64), KEY_HEADS * GROUP
    seen, fresh, index, place = path_of(base + 1 + p, node, row, slot, position, prefixes, tail, width, rows, slots, places, ALONE)
    _, fresh0, index0, place0 = path_of(base + zero, node, row, slot, position, prefixes, tail, width, rows, slots, places, ALONE)
    for g in tl.static_range(GROUP):
        mine = head * GROUP + g
        behind = decay_of(decay, decays, row, seen, fresh, index, place, places, mine, heads)
        rest = tl.cumprod(behind, 0, reverse=True)
        tl.store(left + (node * heads + mine) * SPAN + p, rest)
        first = decay_of(decay, decays, row, zero == 0, fresh0, index0, place0, places, mine, heads)
        tl.store(whole + node * heads + mine + zero, first * tl.sum(tl.where(p == 0, rest, 0.0), 0))
        own = tl.load(decay + node * heads + mine)
        tl.store(decays + (row * places + slot % places) * heads + mine, own)


@triton.jit
def decay_of(decay, decays, row, seen, fresh, index, place, places, head, heads):
    """The factors of records that are `seen`; 1 in the place of others."""
    old = tl.load(decays + (row * places + place) * heads + head, seen & ~fresh, other=1.0)
    return tl.where(fresh, tl.load(decay + index * heads + head, seen & fresh, other=1.0), old)
