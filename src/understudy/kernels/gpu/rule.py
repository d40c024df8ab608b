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
from torch import Tensor

from ...recurrent import RecurrentShape, RecurrentState
from ...tree import Nodes
from ..recurrence import SPAN, RuleStep
from . import INTERPRETED
from .node_paths import tail_of
from .rule_walk import walk
from .rule_weights import weigh

# numbers of a head's values that a program has
BLOCK = 32
# programs that share the keys of a node's path
PARTS = 1 if INTERPRETED else 4
# numbers in a key at most, of what a program has registers for; the same where each channel forgets at a speed of its own
WIDEST, WIDEST_BY_CHANNEL = 256, 128
# records that become part of a state together
STRETCH = 16


def serves(shape: RecurrentShape) -> bool:
    """Are layers of this `shape` run by these kernels? Of a convolution alone there is nothing that they would not do."""
    alike = not shape.by_channel or shape.key_heads == shape.value_heads
    return alike and not shape.rated and shape.key_size <= (WIDEST_BY_CHANNEL if shape.by_channel else WIDEST)


def recur(step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
    """The rule after each of `nodes`, [n, value heads, value size] float32; their records are put at their slots.

    together: no node is another's ancestor. Else those of a row follow one another, parents before their children, `most_walked`
    of them at most; what the first of a row reads is folded, and what later ones read is folded here."""
    shape, count = state.shape, len(nodes)
    reads = 1 if step.beta is None else 2
    # where each channel forgets at a speed of its own, products are of what is left of keys already
    rest = 0 if shape.by_channel else SPAN
    made = (count, shape.key_heads, reads, SPAN), (count, shape.value_heads, rest), (count, shape.value_heads, shape.decays)
    products, left, whole = (step.key.new_empty(size) for size in made)
    paths = torch.empty((count, SPAN), dtype=torch.int64, device=products.device)
    updates, out = torch.empty_like(step.value), torch.empty_like(step.value)
    query, key, value, decay = (given.contiguous() for given in (step.query, step.key, step.value, step.decay))
    beta = decay if step.beta is None else step.beta.contiguous()
    tail, width = tail_of(nodes)
    at = nodes.rows, nodes.slots, nodes.positions
    sizes = _sizes(shape, reads, together)
    weigh[(count, shape.key_heads, PARTS + 1)](
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
    sizes = _sizes(shape, 2, False)
    none = _none(state.keys.device)
    # The state may lie on another device than the one that is at work.
    with torch.cuda.device(none.device) if none.is_cuda else nullcontext():
        _launch_walk(1, (state.keys,) * 8, state, (none,) * 4, (state.values,) * 2, sizes, (0, row, number))


def _sizes(shape: RecurrentShape, reads: int, together: bool) -> dict[str, Any]:
    """What both kernels are compiled for."""
    return {
        "KEY_HEADS": shape.key_heads, "GROUP": shape.value_heads // shape.key_heads, "SIZE": shape.key_size,
        "C": max(16, triton.next_power_of_2(shape.key_size)), "READS": reads, "SPAN": SPAN, "ALONE": together,
        "BY_CHANNEL": shape.by_channel,
    }  # fmt: skip


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
    walk[(rows, shape.value_heads, blocks)](
        *given, state.keys, state.values, state.decays, state.states, *at, *made, count, state.places, row, number,
        **sizes, NUMBERS=shape.value_size, BLOCK=BLOCK, STRETCH=STRETCH, num_warps=4, num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip
