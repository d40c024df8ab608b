"""The candidates of the next level of a tree search, in kernels: the likeliest ones, and how many of them pay. See `search`."""

import triton
import triton.language as tl

from .search_columns import CHAIN, CHILDREN, DEEP, DEPTH, FROM, PLACE, ROW, SPINE, THROUGH, VALID, WHAT


@triton.jit(do_not_specialize=["rows"])
def rank(
    node, node_chances, count, most, figures, picked, picked_chances, tips, rows,
    BLOCK: tl.constexpr, STEP: tl.constexpr, LIMIT: tl.constexpr, FORCED: tl.constexpr, MOST_NODES: tl.constexpr,
    RANKS: tl.constexpr,
):  # fmt: skip
    """Some children of one row's nodes: those that fewer than LIMIT others go before are picked, each at its place.

    All rows' children compete; of equal ones tips of chains go first, then older nodes. With a forced shape, those of the newest
    level of a row compete, and its tip goes first."""
    row = tl.program_id(0)
    child = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    level = tl.load(figures + 2)
    key, tip = _open(node, node_chances, count, most, row, child, level, FORCED, MOST_NODES, RANKS)
    if tl.max(key, 0) >= 0:
        order = _order(row, child, tip, rows, MOST_NODES * RANKS)
        ahead = tl.zeros([BLOCK], tl.int32)
        low = row if FORCED else 0
        high = row + 1 if FORCED else rows
        for other in range(low, high):
            held = tl.load(count + other).to(tl.int32) * RANKS
            for start in range(0, held, STEP):
                beside = start + tl.arange(0, STEP)
                rival, chain = _open(
                    node, node_chances, count, most, other, beside, level, FORCED, MOST_NODES, RANKS
                )
                earlier = _order(other, beside, chain, rows, MOST_NODES * RANKS)[None, :] < order[:, None]
                equal = rival[None, :] == key[:, None]
                ahead += tl.sum(((rival[None, :] > key[:, None]) | (equal & earlier)).to(tl.int32), 1)
        here = (key >= 0) & (ahead < LIMIT)
        at = ahead + (row * LIMIT if FORCED else 0)
        tl.store(picked + at, row * (MOST_NODES * RANKS) + child, here)
        tl.store(picked_chances + at, key, here)
        tl.store(tips + row + child * 0, (row * MOST_NODES + child // RANKS).to(tl.int64), tip & (key >= 0))


@triton.jit
def _open(
    node, node_chances, count, most, row, child, level,
    FORCED: tl.constexpr, MOST_NODES: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """The chance of each `child` of a row that may still be run, -1 for others, and whether it is the tip of a chain."""
    held = tl.load(count + row)
    known = child < tl.where(held < tl.load(most + row), held, 0) * RANKS
    at = row * MOST_NODES + child // RANKS
    key = tl.load(node_chances + at * (THROUGH + 3 * RANKS) + THROUGH + RANKS + child % RANKS, known, other=-1.0)
    first = known & (child % RANKS == 0)
    tip = tl.load(node + at * (CHILDREN + RANKS) + SPINE, first, other=0) > 0
    if FORCED:
        newest = tl.load(node + at * (CHILDREN + RANKS) + DEPTH, known, other=-1) + 1 == level
        key = tl.where(newest, tl.where(tip & (key >= 0), key + 2.0, key), -1.0)
    return key, tip


@triton.jit
def _order(row, child, tip, rows, EACH: tl.constexpr):
    """Which goes first of children that are equally likely."""
    return tl.where(tip, row, rows + row * EACH + child)


@triton.jit(do_not_specialize=["widest", "rows", "together"])
def offer(
    candidates, chances, figures, node, node_chances, count, picked, picked_chances, tips, nodes, rate, break_even, free, cost,
    share, likely, widest, rows, together,
    L: tl.constexpr, R: tl.constexpr, FORCED: tl.constexpr, LEVELS: tl.constexpr, MOST_NODES: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """One program: as many of the children that were picked as pay become the candidates."""
    lane = tl.arange(0, L)
    child = tl.load(picked + lane)
    there = child >= 0
    spare = tl.full([], 0, tl.int64)
    left = tl.full([], 0, tl.int64)
    if FORCED:
        valid = there & (tl.load(figures + 2) <= LEVELS - 1)
        wish = tl.sum(valid.to(tl.int64), 0)
    else:
        row = tl.arange(0, R)
        ends = tl.load(tips + row, row < rows, other=-1)
        tip = tl.load(node_chances + tl.maximum(ends, 0) * (THROUGH + 3 * RANKS) + THROUGH, ends >= 0, other=-1.0)
        depth = tl.load(node + tl.maximum(ends, 0) * (CHILDREN + RANKS) + DEPTH, ends >= 0, other=0) + 1
        used = tl.sum(tl.where(row < rows, tl.maximum(tl.load(count + row, row < rows, other=0), 1), 0), 0)
        worth = tl.load(break_even)
        chance = tl.load(picked_chances + lane)
        go_on = _levels_left(tip[None, :], depth[None, :], tl.maximum(chance, worth)[:, None], likely, MOST_NODES)
        room = tl.load(nodes) - used
        fits = (lane + 1 + tl.sum(go_on, 1) <= room) & (chance >= 0)
        most = tl.minimum(tl.maximum(tl.sum(fits.to(tl.int32), 0), 1), together)
        seconds = tl.load(share + tl.minimum(used, tl.load(nodes)))
        wish = _worth(picked_chances, most, tl.load(rate), cost, seconds, tl.load(free), tl.load(likely + 1))
        wish = tl.where((tl.max(ends, 0) >= 0) & (room > 0), wish, 0)
        best = tl.min(tl.where(tip == tl.max(tip, 0), row, R), 0)
        on = tl.sum(tl.where(row == best, _levels_left(tip, depth, worth, likely, MOST_NODES), 0), 0)
        left = tl.where(wish > 0, on, 0)
        valid = lane < wish
        # kept at hand for a level that would be without a tip
        spare = tl.maximum(tl.sum(tl.where(row == best, ends, 0), 0), 0) * RANKS
    _write(
        candidates, chances, node, node_chances, tl.maximum(child, 0), lane, valid, widest, MOST_NODES, RANKS
    )
    one = tl.arange(0, 1)
    _write(
        candidates, chances, node, node_chances, one + spare, one + widest, one == 0, widest, MOST_NODES, RANKS
    )
    tl.store(figures, wish)
    tl.store(figures + 1, left)


@triton.jit
def _levels_left(tip, depth, least, likely, MOST_NODES: tl.constexpr):
    """`device_state.levels_left` of chains of chance `tip`, -1 for none, at `depth`: int64 of the shape of all three."""
    chance = tl.log(tl.where(tip > 0, tip, 1.0))
    loss = tl.minimum(chance / depth.to(tl.float64), tl.load(likely))
    levels = tl.floor(tl.log(least / tl.where(tip > 0, tip, 1.0)) / loss + tl.load(likely + 2))
    return tl.where(tip > least, tl.minimum(levels, MOST_NODES), 0.0).to(tl.int64)


@triton.jit
def _worth(chances, most, rate, cost, seconds, free, least):
    """How many of the first `most` candidates pay, as `Pace.width`. They are added up one after another, as there."""
    gain = rate * 0
    highest = rate * 0
    count = tl.full([], 0, tl.int64)
    for i in range(most):
        chance = tl.load(chances + i)
        gain += tl.maximum(chance, 0.0)
        value = gain - rate * (tl.load(cost + i) + (i + 1) * seconds)
        better = (chance >= 0) & (value > highest)
        count = tl.where(better, i + 1, count).to(tl.int64)
        highest = tl.where(better, value, highest)
    for_nothing = (free > 0) & (tl.load(chances) > least)
    return tl.where(highest > 0, count, for_nothing.to(tl.int64))


@triton.jit
def _write(
    candidates, chances, node, node_chances, child, lane, valid, widest,
    MOST_NODES: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """Make each `child`, by node and rank, a candidate at its `lane`."""
    at = child // RANKS
    rank = child % RANKS
    whole = node + at * (CHILDREN + RANKS)
    stride = widest + 1
    place = at * (THROUGH + 3 * RANKS) + THROUGH + rank
    tl.store(candidates + ROW * stride + lane, at // MOST_NODES)
    tl.store(candidates + PLACE * stride + lane, place)
    tl.store(candidates + FROM * stride + lane, at % MOST_NODES)
    tl.store(candidates + WHAT * stride + lane, tl.load(whole + CHILDREN + rank))
    tl.store(candidates + DEEP * stride + lane, tl.load(whole + DEPTH) + 1)
    tl.store(candidates + CHAIN * stride + lane, ((rank == 0) & (tl.load(whole + SPINE) > 0)).to(tl.int64))
    tl.store(candidates + VALID * stride + lane, valid.to(tl.int64))
    tl.store(chances + lane, tl.load(node_chances + place))
