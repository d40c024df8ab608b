"""The nodes of a level of a tree search, in kernels: which they are, and the best children of each. See `search`.

A program does P places of the level: two on a GPU, since compilers of Triton confuse the layouts of blocks of one. A level of one
place has another one beside it then, in all that is written."""

import triton
import triton.language as tl

from .noise import heated, in_order, score_of
from .search_columns import (
    BECAME,
    CHAIN,
    CHILDREN,
    DEEP,
    DEPTH,
    FOUND,
    FROM,
    PARENT,
    PLACE,
    ROW,
    SPINE,
    THROUGH,
    VALID,
    WHAT,
)

# Below any child.
NONE = tl.constexpr(-0x7FFFFFFFFFFFFFFF)


@triton.jit(do_not_specialize=["widest", "held", "width"])
def begin(
    candidates, chances, figures, count, most, length, slot, straight, cache_row, node_chances, tails, taken, taken_chances,
    begun, picked, picked_chances, tips, tokens, rows, slots, positions, prefix, tail, widest, held, width,
    P: tl.constexpr, W: tl.constexpr, T: tl.constexpr, WIDEST: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
    MOST_NODES: tl.constexpr, RANKS: tl.constexpr, FORCED: tl.constexpr, GUESSED: tl.constexpr,
):  # fmt: skip
    """The candidates become nodes, as far as there is room; what is chosen later is cleared."""
    place = tl.program_id(0) * P + tl.arange(0, P)
    stride = widest + 1
    each = tl.arange(0, W)
    pick = place
    if not FORCED:
        # a tip that is kept at hand takes the last place where there is none
        valid = ((each < width) & (tl.load(candidates + VALID * stride + each) > 0)).to(tl.int32)
        chain = tl.load(candidates + CHAIN * stride + each).to(tl.int32) * valid
        last = tl.where(tl.sum(chain, 0) == 0, tl.sum(valid, 0) - 1, -1)
        pick = tl.where(place == last, widest, place)
        each = tl.where(each == last, widest, each)
    row = tl.load(candidates + ROW * stride + pick)
    deep = tl.load(candidates + DEEP * stride + pick)
    parent = tl.load(candidates + FROM * stride + pick)
    token = tl.load(candidates + WHAT * stride + pick)
    theirs = tl.load(candidates + ROW * stride + each)
    alike = (theirs[None, :] == row[:, None]) & (tl.load(candidates + VALID * stride + each) > 0)[None, :]
    before = tl.sum((alike & (tl.arange(0, W)[None, :] < place[:, None])).to(tl.int32), 1)
    index = tl.load(count + row) + before
    room = tl.load(most + row)
    fresh = (place < width) & (tl.load(candidates + VALID * stride + pick) > 0) & (index < room)
    node = row * MOST_NODES + index
    chance = tl.load(candidates + PLACE * stride + pick)
    tl.store(taken_chances + place, tl.load(chances + pick))
    # what is taken is a candidate no longer; a root never was one
    tl.store(node_chances + chance, tl.full([P], -1.0, tl.float64), fresh & (parent >= 0))
    tl.store(node_chances + chance + RANKS, tl.full([P], -1.0, tl.float64), fresh & (parent >= 0))
    start = tl.load(length + row)
    here = tl.load(slot + row) + tl.where(fresh, index, room)
    below = tl.load(straight + row)
    at = tl.arange(0, T)[None, :]
    mine = fresh[:, None] & (at < MOST_NODES)
    path = tl.load(tails + ((row * MOST_NODES + tl.maximum(parent, 0)) * MOST_NODES)[:, None] + at, mine, other=0)
    if GUESSED:
        # chains behind roots lie one after another
        path = tl.where(at < deep[:, None], start[:, None] + 1 + at, path)
    path = tl.where(at == (start + deep - below)[:, None], here[:, None], path)
    tl.store(tails + (node * MOST_NODES)[:, None] + at, path, mine)
    tl.store(tail + (place * MOST_NODES)[:, None] + at, path, (place[:, None] >= 0) & (at < MOST_NODES))
    tl.store(tokens + place, token)
    tl.store(rows + place, tl.load(cache_row + row))
    tl.store(slots + place, here)
    tl.store(positions + place, tl.where(fresh, start + deep, 0))
    if GUESSED:
        # and each node at the slot of its own position
        below += deep
    tl.store(prefix + place, tl.where(fresh, below, 1))
    tl.store(taken + ROW * held + place, row)
    tl.store(taken + FROM * held + place, parent)
    tl.store(taken + WHAT * held + place, token)
    tl.store(taken + DEEP * held + place, deep)
    tl.store(taken + CHAIN * held + place, tl.load(candidates + CHAIN * stride + pick))
    tl.store(taken + BECAME * held + place, tl.where(fresh, node, -1))
    if tl.program_id(0) == 0:
        tl.store(begun, tl.load(figures + 2) + 1)
        lane = tl.arange(0, WIDEST)
        tl.store(picked + lane, tl.full([WIDEST], -1, tl.int64))
        tl.store(picked_chances + lane, tl.full([WIDEST], -1.0, tl.float64))
        ends = tl.arange(0, WIDE)
        tl.store(tips + ends, tl.full([WIDE], -1, tl.int64), ends < ROWS)


@triton.jit(do_not_specialize=["held", "first"])
def best(
    logits, keys, taken, length, temperature, offset, least, held, first, vocabulary, stride,
    P: tl.constexpr, CHUNK: tl.constexpr, SAMPLED: tl.constexpr, FILTERED: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """One chunk of the vocabulary. A key is a score, in the order of whole numbers, and below it the token."""
    place = tl.program_id(0) * P + tl.arange(0, P)
    chunk = tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    at = place.to(tl.int64)[:, None] * stride + token[None, :]
    inside = (place[:, None] >= 0) & (token < vocabulary)[None, :]
    score = tl.load(logits + at, inside, other=-float("inf")).to(tl.float32)
    if SAMPLED:
        row = tl.load(taken + ROW * held + first + place)
        heat = tl.load(temperature + row)
        after = tl.load(length + row) + tl.load(taken + DEEP * held + first + place) + 1
        lowest = after
        if FILTERED:
            lowest = tl.load(least + place)
        score = heated(score, heat, after + tl.load(offset + row), token, lowest, FILTERED)
    # what is no number is no child
    known = (score > -float("inf")) & (score < float("inf"))
    key = tl.where(known, in_order(score, token), NONE)
    out = keys + (place * tl.num_programs(1) + chunk) * RANKS
    for rank in tl.static_range(RANKS):
        highest = tl.max(key, 1)
        tl.store(out + rank, highest)
        key = tl.where(key == highest[:, None], NONE, key)


@triton.jit(do_not_specialize=["held", "first", "places"])
def add(
    keys, taken, taken_chances, begun, node, node_chances, count, figures, remaining, stops, inside, belief, sharpness, steepest,
    held, first, places,
    P: tl.constexpr, KEYS: tl.constexpr, LANES: tl.constexpr, S: tl.constexpr, C: tl.constexpr, SHARP: tl.constexpr,
    STOPS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """The new nodes, the best children of each, and the chance of each child, as `Calibration.chances`."""
    place = tl.program_id(0) * P + tl.arange(0, P)
    lane = tl.arange(0, LANES)[None, :]
    key = tl.load(keys + (place * KEYS)[:, None] + lane, (place < places)[:, None] & (lane < KEYS), other=NONE)
    rank = tl.arange(0, C)[None, :]
    top = tl.full([P, C], NONE, tl.int64)
    for i in tl.static_range(RANKS):
        highest = tl.max(key, 1)[:, None]
        top = tl.where(rank == i, highest, top)
        key = tl.where(key == highest, NONE, key)
    found = top > NONE
    score = tl.where(found, score_of(top).to(tl.float64), -float("inf"))
    token = tl.where(found, 0x7FFFFFFF - (top - ((top >> 32) << 32)), 0)
    here = place < places
    place += first
    number = tl.load(taken + BECAME * held + place, here, other=-1)
    row = tl.load(taken + ROW * held + place, here, other=0)
    sharp = tl.arange(0, S)
    steep = tl.load(sharpness + sharp, sharp < SHARP, other=0.0)[None, :, None]
    highest = tl.max(score, 1)[:, None]
    behind = (tl.where(found, highest, 0.0) - tl.where(found, score, 0.0))[:, None, :]
    weight = tl.where(found[:, None, :], tl.exp(-tl.minimum(steep * behind, tl.load(steepest))), 0.0)
    soft = weight / tl.maximum(tl.sum(weight, 2), 1.0)[:, :, None]
    learned = (row[:, None] >= 0) & (sharp < SHARP)[None, :]
    believed = tl.load(belief + row[:, None] * SHARP + sharp[None, :], learned, other=0.0)
    chance = tl.load(inside + row)[:, None] * tl.sum(believed[:, :, None] * soft, 1)
    known = tl.load(taken_chances + place, here, other=0.0)
    through = tl.where(found, known[:, None] * chance, -1.0)
    depth = tl.load(taken + DEEP * held + place, here, other=0)
    going = found & (depth + 1 < tl.load(remaining + row) - 1)[:, None]
    for i in range(STOPS):
        going = going & (token != tl.load(stops + row * STOPS + i)[:, None])
    fresh = number >= 0
    whole = node + number * (CHILDREN + RANKS)
    tl.store(whole, tl.load(taken + WHAT * held + place, fresh, other=0), fresh)
    tl.store(whole + PARENT, tl.load(taken + FROM * held + place, fresh, other=0), fresh)
    tl.store(whole + DEPTH, depth, fresh)
    tl.store(whole + SPINE, tl.load(taken + CHAIN * held + place, fresh, other=0), fresh)
    tl.store(whole + FOUND, tl.sum(found.to(tl.int64), 1), fresh)
    these = fresh[:, None] & (rank < RANKS)
    tl.store(whole[:, None] + CHILDREN + rank, token, these)
    numbers = node_chances + number * (THROUGH + 3 * RANKS)
    tl.store(numbers, known, fresh)
    tl.store(numbers[:, None] + THROUGH + rank, through, these)
    tl.store(numbers[:, None] + THROUGH + RANKS + rank, tl.where(going, through, -1.0), these)
    tl.store(numbers[:, None] + THROUGH + 2 * RANKS + rank, score, these)
    tl.atomic_add(count + row, tl.full([P], 1, tl.int64), fresh)
    # every new node writes the same number
    tl.store(figures + 2 + place * 0, tl.load(begun) + place * 0, fresh)


@triton.jit
def agree(
    node, node_chances, count,
    N: tl.constexpr, LANES: tl.constexpr, MOST_NODES: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """Of the chain behind one root, the tokens stay that are the first choice after the one before; each then has the chance of all
    up to it, and is a candidate no longer."""
    row = tl.program_id(0)
    held = tl.load(count + row)
    place = tl.arange(0, N)
    before = node + (row * MOST_NODES + place) * (CHILDREN + RANKS)
    there = place + 1 < held
    token = tl.load(before + CHILDREN + RANKS, there, other=0)
    right = there & (tl.load(before + CHILDREN, there, other=0) == token) & (tl.load(before + FOUND, there, other=0) > 0)
    agreed = tl.min(tl.where(right, N, place), 0)
    tl.store(count + row, tl.minimum(held, agreed + 1))
    lane = tl.arange(0, LANES)
    mine = lane < THROUGH + 2 * RANKS
    known = tl.full([], 1.0, tl.float64)
    for i in range(agreed + 1):
        numbers = node_chances + (row * MOST_NODES + i) * (THROUGH + 3 * RANKS)
        chance = tl.load(numbers + lane, mine, other=-1.0)
        first = tl.sum(tl.where(lane == THROUGH, chance, 0.0), 0)
        chance = tl.where(chance >= 0, chance * known, chance)
        taken = (i < agreed) & ((lane == THROUGH) | (lane == THROUGH + RANKS))
        tl.store(numbers + lane, tl.where(taken, -1.0, chance), mine)
        known *= first
