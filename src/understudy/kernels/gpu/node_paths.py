"""Where a GPU finds what lies on the path of a node: among the nodes of the same launch, or among a row's records."""

import triton
import triton.language as tl
from torch import Tensor

from ...tree import Nodes


def tail_of(nodes: Nodes) -> tuple[Tensor, int]:
    """The tails of `nodes` as kernels take them, and their width."""
    return (nodes.tail.contiguous(), nodes.tail.shape[1]) if nodes.tail.shape[1] else (nodes.positions, 0)


@triton.jit
def path_of(at, node, row, slot, position, prefixes, tail, width, rows, slots, places, ALONE: tl.constexpr):
    """Of positions `at` of a row, on the path of `node`: which it sees, itself included; which are nodes of this launch, with their
    numbers; and the places of records. ALONE: it is the only node of its path here.

    A row's nodes lie one behind another, in their slots as in the launch."""
    prefix = tl.load(prefixes + node)
    seen = at <= position
    beyond = seen & (at >= prefix)
    there = tl.where(at >= prefix, tl.load(tail + node * width + at - prefix, beyond, other=0), at)
    there = tl.where(at == position, slot, there)
    index = node - (slot - there)
    fresh = at == position
    if not ALONE:
        known = seen & (index >= 0)
        mine = tl.load(rows + index, known, other=-1) == row
        fresh = known & mine & (tl.load(slots + index, known, other=-1) == there)
    return seen, fresh, index, there % places


@triton.jit
def row_of(row, rows, count):
    """`row`, the first of `count` nodes that is of it, and one past its last."""
    lane = tl.arange(0, 64)
    first, held = count + row * 0, row * 0
    for start in range(0, count, 64):
        mine = tl.load(rows + start + lane, start + lane < count, other=-1) == row
        held += tl.sum(mine.to(tl.int64), 0)
        first = tl.minimum(first, tl.min(tl.where(mine, start + lane, count), 0))
    return row, first, first + held
