"""A layer of the gated delta rule in a level of the draft, between the products of its inputs and that of its output, on a GPU:
four launches. `kernels.draft_delta` says what it computes; of the nodes none is another's ancestor."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...recurrent import RecurrentState
from ...tree import Nodes
from ..delta_form import DeltaForm
from ..recurrence import RuleStep
from . import rule
from .node_paths import path_of, tail_of

# added to the square of a key's length, as the stock modules do
SHORTEST = tl.constexpr(1e-6)
# an argument beyond which softplus is its argument
STRAIGHT = tl.constexpr(20.0)


def mix_delta(made: Tensor, state: RecurrentState, nodes: Nodes, form: DeltaForm) -> Tensor:
    """What the rule gives `nodes`, after the gated norm: made [n, columns] -> [n, value heads * value size]. Records are put at
    their slots."""
    shape, count = state.shape, len(nodes)
    groups, heads, size, numbers = shape.key_heads, shape.value_heads, shape.key_size, shape.value_size
    assert made.is_contiguous() and made.dtype == state.inputs.dtype
    query, key, value, decay, beta = (
        torch.empty((count, *each), dtype=torch.float32, device=made.device)
        for each in ((groups, size), (groups, size), (heads, numbers), (heads,), (heads,))
    )
    tail, width = tail_of(nodes)
    line = form.line
    _ask[(count, groups + heads)](
        made, line.channels, line.betas, line.decays, form.rates, form.shifts, form.weight, state.inputs, nodes.rows, nodes.slots,
        nodes.positions, nodes.prefix, tail, query, key, value, decay, beta, width, state.places, made.shape[1],
        KEY_HEADS=groups, HEADS=heads, SIZE=size, C=triton.next_power_of_2(size), NUMBERS=numbers,
        V=triton.next_power_of_2(numbers), CHANNELS=shape.channels, TAPS=shape.taps, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    given = rule.recur(RuleStep(query, key, value, decay, beta), state, nodes, together=True)
    out = torch.empty((count, heads * numbers), dtype=made.dtype, device=made.device)
    _gate[(count, heads)](
        given, made, line.gates, form.norm.weight, out, form.norm.epsilon, made.shape[1], HEADS=heads, NUMBERS=numbers,
        V=triton.next_power_of_2(numbers), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["width", "places", "columns"])
def _ask(
    made, channels, betas, decays_at, rates, shifts, weight, inputs, rows, slots, positions, prefixes, tail, query, key, value,
    decay, beta, width, places, columns, KEY_HEADS: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr,
    NUMBERS: tl.constexpr, V: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """One node and one head: query and key of length one; or values, the share that is written, and the decay."""
    node, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if head < KEY_HEADS:
        c = tl.arange(0, C)
        asked = _convolved(
            head * SIZE + c, c < SIZE, node, made, channels, weight, inputs, rows, slots, positions, prefixes, tail, width, places,
            columns, CHANNELS, TAPS,
        )  # fmt: skip
        own = _convolved(
            (KEY_HEADS + head) * SIZE + c, c < SIZE, node, made, channels, weight, inputs, rows, slots, positions, prefixes, tail,
            width, places, columns, CHANNELS, TAPS,
        )  # fmt: skip
        into = (node * KEY_HEADS + head) * SIZE + c
        length = tl.rsqrt(tl.sum(asked * asked, 0) + SHORTEST) * tl.rsqrt(tl.full([1], SIZE, tl.float32))
        tl.store(query + into, asked * length, c < SIZE)
        tl.store(key + into, own * tl.rsqrt(tl.sum(own * own, 0) + SHORTEST), c < SIZE)
    else:
        value_head = head - KEY_HEADS
        v = tl.arange(0, V)
        given = _convolved(
            2 * KEY_HEADS * SIZE + value_head * NUMBERS + v, v < NUMBERS, node, made, channels, weight, inputs, rows, slots,
            positions, prefixes, tail, width, places, columns, CHANNELS, TAPS,
        )  # fmt: skip
        tl.store(value + (node * HEADS + value_head) * NUMBERS + v, given, v < NUMBERS)
        line = made + node * columns
        share = tl.load(line + tl.load(betas + value_head)).to(tl.float32)
        tl.store(beta + node * HEADS + value_head, 1 / (1 + tl.exp(-share)))
        x = tl.load(line + tl.load(decays_at + value_head)).to(tl.float32) + tl.load(shifts + value_head)
        soft = tl.where(x > STRAIGHT, x, tl.log(1 + tl.exp(tl.minimum(x, STRAIGHT))))
        tl.store(decay + node * HEADS + value_head, tl.exp(-tl.load(rates + value_head) * soft))


@triton.jit
def _convolved(
    c, inside, node, made, channels, weight, inputs, rows, slots, positions, prefixes, tail, width, places, columns,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Channels `c` of one node, convolved and through silu; its own inputs are put."""
    row, slot, position = tl.load(rows + node), tl.load(slots + node), tl.load(positions + node)
    own = tl.load(made + node * columns + tl.load(channels + c, inside, other=0), inside, other=0)
    tl.store(inputs + (row * places + slot % places) * CHANNELS + c, own, inside)
    total = own.to(tl.float32) * tl.load(weight + c * TAPS + TAPS - 1, inside, other=0).to(tl.float32)
    for back in tl.static_range(1, TAPS):
        at = position - back + tl.zeros([1], tl.int64)
        _, _, _, place = path_of(at, node, row, slot, position, prefixes, tail, width, rows, slots, places, True)
        held = tl.load(inputs + (row * places + place) * CHANNELS + c, inside & (at >= 0), other=0).to(tl.float32)
        total += held * tl.load(weight + c * TAPS + TAPS - 1 - back, inside, other=0).to(tl.float32)
    total = total.to(made.dtype.element_ty).to(tl.float32)
    return total / (1 + tl.exp(-total))


@triton.jit(do_not_specialize=["epsilon", "columns"])
def _gate(given, made, gates, weight, out, epsilon, columns, HEADS: tl.constexpr, NUMBERS: tl.constexpr, V: tl.constexpr):
    """One node and one head: what the rule gave, normed, and multiplied by silu of its gate."""
    node, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = tl.arange(0, V)
    line = (node * HEADS + head) * NUMBERS + v
    x = tl.load(given + line, v < NUMBERS, other=0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / NUMBERS + epsilon) * tl.load(weight + v, v < NUMBERS, other=0)
    gate = tl.load(made + node * columns + tl.load(gates + head) + v, v < NUMBERS, other=0).to(tl.float32)
    tl.store(out + line, (x * gate / (1 + tl.exp(-gate))).to(out.dtype.element_ty), v < NUMBERS)
