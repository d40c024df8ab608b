"""The rule of recurrent layers on a GPU (`kernels.recurrence` says what it is), two launches for all nodes of a pass or a level.

First what each node reads at is multiplied by the keys on its path, each node for itself. Then a program walks over the nodes of a
row, for some numbers of one head's values: none of them needs another's, so a parent's update is always there. It folds states on
its way, since a prompt's nodes read what is folded of those before. Every sum runs over a node's own positions in blocks that begin
at multiples of 64, so a node has the same bits in a tree, in a prompt or alone."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...recurrent import RecurrentShape, RecurrentState
from ...tree import Nodes
from ..recurrence import SPAN, RuleStep
from . import INTERPRETED
from .node_paths import path_of, row_of, tail_of

FOLD = tl.constexpr(64)
# numbers of a head's values that a program has
BLOCK = 32
# programs that share the keys of a node's path
PARTS = 1 if INTERPRETED else 4
# numbers in a key at most: a program holds BLOCK columns of a state in registers
WIDEST = 256
# records that become part of a state together
STRETCH = 16
# Far before any node: nothing that is folded alone is of a pass.
NOBODY = -(1 << 40)


def serves(shape: RecurrentShape) -> bool:
    """Are layers of this `shape` run by these kernels? Of a convolution alone there is nothing that they would not do."""
    return not shape.by_channel and shape.key_size <= WIDEST


def recur(step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
    """The rule after each of `nodes`, [n, value heads, value size] float32; their records are put at their slots.

    together: no node is another's ancestor. Else those of a row follow one another, parents before their children, `most_walked`
    of them at most; what the first of a row reads is folded, and what later ones read is folded here."""
    shape, count = state.shape, len(nodes)
    reads = 1 if step.beta is None else 2
    made = (count, shape.key_heads, reads, SPAN), (count, shape.value_heads, SPAN), (count, shape.value_heads)
    products, left, whole = (step.key.new_empty(size) for size in made)
    paths = torch.empty((count, SPAN), dtype=torch.int64, device=products.device)
    updates, out = torch.empty_like(step.value), torch.empty_like(step.value)
    query, key, value, decay = (given.contiguous() for given in (step.query, step.key, step.value, step.decay))
    beta = decay if step.beta is None else step.beta.contiguous()
    tail, width = tail_of(nodes)
    at = nodes.rows, nodes.slots, nodes.positions
    sizes = {"KEY_HEADS": shape.key_heads, "GROUP": shape.value_heads // shape.key_heads, "SIZE": shape.key_size}
    sizes |= {"C": max(16, triton.next_power_of_2(shape.key_size)), "READS": reads, "SPAN": SPAN, "ALONE": together}
    _weigh[(count, shape.key_heads, PARTS + 1)](
        query, key, decay, state.keys, state.decays, *at, nodes.prefix, tail, products, left, whole,
        paths, width,
        state.places, **sizes, PARTS=PARTS, TILE=SPAN // PARTS, num_warps=4, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip
    given = query, key, value, decay, beta, products, left, whole
    rows = count if together else state.states.shape[0]
    _launch_walk(rows, given, state, (*at, paths), (updates, out), sizes, (count, 0, -1))
    return out


def fold(state: RecurrentState, row: int, number: int) -> None:
    """Make the state of `row` after FOLD * (number + 1) tokens, from the one after FOLD * number tokens and the records since."""
    shape = state.shape
    if not shape.value_heads:
        return
    sizes = {"KEY_HEADS": shape.key_heads, "GROUP": shape.value_heads // shape.key_heads, "SIZE": shape.key_size}
    sizes |= {"C": max(16, triton.next_power_of_2(shape.key_size)), "READS": 2, "SPAN": SPAN, "ALONE": False}
    none = _none(state.keys.device)
    # The state may lie on another device than the one that is at work.
    with torch.cuda.device(none.device) if none.is_cuda else nullcontext():
        _launch_walk(1, (state.keys,) * 8, state, (none,) * 4, (state.values,) * 2, sizes, (0, row, number))


@cache
def _none(where: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=where)


def _launch_walk(
    rows: int, given: tuple[Tensor, ...], state: RecurrentState, at: tuple[Tensor, ...], made: tuple[Tensor, Tensor],
    sizes: dict[str, Any], numbers: tuple[int, int, int],
) -> None:  # fmt: skip
    shape = state.shape
    count, row, number = numbers
    blocks = triton.cdiv(shape.value_size, BLOCK)
    _walk[(rows, shape.value_heads, blocks)](
        *given, state.keys, state.values, state.decays, state.states, *at, *made, count, state.places, row, number,
        **sizes, NUMBERS=shape.value_size, BLOCK=BLOCK, STRETCH=STRETCH, num_warps=4, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["width", "places"],
    do_not_specialize_on_alignment=["query", "key", "decay", "rows", "slots", "positions", "prefixes", "tail"],
)
def _weigh(
    query, key, decay, keys, decays, rows, slots, positions, prefixes, tail, products, left, whole, paths, width, places,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, READS: tl.constexpr, SPAN: tl.constexpr,
    ALONE: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr,
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
        asked = tl.load(query + mine, c < SIZE, other=0)
        into = products + (node * KEY_HEADS + head) * READS * SPAN + p
        tl.store(into, tl.sum(held * asked[None, :], 1), seen)
        if READS == 2:
            tl.store(into + SPAN, tl.sum(held * own[None, :], 1), seen)
    else:
        tl.store(keys + ((row * places + slot % places) * KEY_HEADS + head) * SIZE + c, own, c < SIZE)
        _remain(
            node, head, row, slot, position, base, decay, decays, rows, slots, prefixes, tail, left, whole, width, places,
            KEY_HEADS, GROUP, SPAN, ALONE,
        )  # fmt: skip


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
        behind = _decay(decay, decays, row, seen, fresh, index, place, places, mine, heads)
        rest = tl.cumprod(behind, 0, reverse=True)
        tl.store(left + (node * heads + mine) * SPAN + p, rest)
        first = _decay(decay, decays, row, zero == 0, fresh0, index0, place0, places, mine, heads)
        tl.store(whole + node * heads + mine + zero, first * tl.sum(tl.where(p == 0, rest, 0.0), 0))
        own = tl.load(decay + node * heads + mine)
        tl.store(decays + (row * places + slot % places) * heads + mine, own)


@triton.jit
def _decay(decay, decays, row, seen, fresh, index, place, places, head, heads):
    """The factors of records that are `seen`; 1 in the place of others."""
    old = tl.load(decays + (row * places + place) * heads + head, seen & ~fresh, other=1.0)
    return tl.where(fresh, tl.load(decay + index * heads + head, fresh, other=1.0), old)


@triton.jit(
    do_not_specialize=["count", "places", "fold_row", "fold_number"],
    do_not_specialize_on_alignment=["query", "key", "value", "decay", "beta", "rows", "slots", "positions", "paths"],
)
def _walk(
    query, key, value, decay, beta, products, left, whole, keys, values, decays, states, rows, slots, positions, paths,
    updates, out, count, places, fold_row, fold_number,
    KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, READS: tl.constexpr, SPAN: tl.constexpr,
    ALONE: tl.constexpr, NUMBERS: tl.constexpr, BLOCK: tl.constexpr, STRETCH: tl.constexpr,
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
                KEY_HEADS, GROUP, SIZE, C, NUMBERS, BLOCK, STRETCH,
            )  # fmt: skip
    for node in range(first, end):
        slot, position = tl.load(slots + node), tl.load(positions + node)
        # what a prompt's nodes read from here on; in a tree it is folded already, and comes to the same
        if (node > first) & (slot == position) & (position % FOLD == 0) & (position >= 2 * FOLD):
            _fold(
                row, position // FOLD - 2, node - position, first, key, decay, keys, values, decays, states, updates, places, head,
                KEY_HEADS, GROUP, SIZE, C, NUMBERS, BLOCK, STRETCH,
            )  # fmt: skip
        _visit(
            node, row, slot, position, query, key, value, beta, products, left, whole, values, states, paths, updates,
            out, places, head, KEY_HEADS, GROUP, SIZE, C, READS, SPAN, ALONE, NUMBERS, BLOCK,
        )  # fmt: skip


@triton.jit
def _visit(
    node, row, slot, position, query, key, value, beta, products, left, whole, values, states, paths, updates,
    out, places, head, KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr,
    READS: tl.constexpr, SPAN: tl.constexpr, ALONE: tl.constexpr, NUMBERS: tl.constexpr, BLOCK: tl.constexpr,
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
    rest = tl.load(left + (node * heads + head) * SPAN + p, seen, other=0)
    all_of_it = tl.load(whole + node * heads + head)
    line = node * KEY_HEADS + head // GROUP
    ours, mine = products + line * READS * SPAN, (node * heads + head) * NUMBERS + v
    update = tl.load(value + mine, v < NUMBERS, other=0)
    if READS == 2:
        own = tl.load(key + line * SIZE + c, c < SIZE, other=0)
        weights = tl.load(ours + SPAN + p, seen, other=0) * rest
        found = tl.sum(state * own[:, None], 0) * all_of_it + tl.sum(written * weights[:, None], 0)
        update = tl.load(beta + node * heads + head) * (update - found)
    asked = tl.load(query + line * SIZE + c, c < SIZE, other=0)
    weights = tl.load(ours + p, seen, other=0) * rest
    found = tl.sum(state * asked[:, None], 0) * all_of_it + tl.sum(written * weights[:, None], 0)
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
    GROUP: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, NUMBERS: tl.constexpr, BLOCK: tl.constexpr, STRETCH: tl.constexpr,
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
        d = _factor(decay, decays, at, row, beside, first, places, head, heads, j < STRETCH)
        behind = _factor(decay, decays, at + 1, row, beside, first, places, head, heads, j < STRETCH - 1)
        rest = tl.cumprod(behind, 0, reverse=True)
        all_of_it = tl.sum(tl.where(j == 0, rest * d, 0.0), 0)
        added = tl.dot(tl.trans(k * rest[:, None]), written, input_precision="ieee")
        state = state * all_of_it + added
    tl.store(states + (row * 2 + (number + 1) % 2) * size + lines, state, inside)
    tl.debug_barrier()


@triton.jit
def _factor(decay, decays, at, row, beside, first, places, head, heads, wanted):
    """The factors of the tokens `at` positions of a row, as in `_fold`; 1 in the place of those that are not wanted."""
    fresh = at + beside >= first
    old = tl.load(decays + (row * places + at % places) * heads + head, wanted & ~fresh, other=1.0)
    return tl.where(fresh, tl.load(decay + (at + beside) * heads + head, wanted & fresh, other=1.0), old)
