"""Recurrent layers over their records (`recurrent.py`): the convolution, the rule and the fold, in plain torch for any device.

The rule of one step, for each head of values, with S [key size, value size]: S = decay * S + key (x) u, and the output is S' query.
u is what the step is given as value, or for the delta rule beta * (value - decay * S' key)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..recurrent import FOLD, RecurrentShape, RecurrentState, fold_by_channel
from ..tree import Nodes

# positions from a node's base state to its last ancestor, at most
SPAN = 2 * FOLD
# nodes of a draft that go together, each with all records that it reads
TOGETHER = 8


@dataclass(frozen=True)
class RuleStep:
    """What the nodes of a pass bring to the rule, all float32. A head of keys serves value heads / key heads heads of values."""

    # [n, key heads, key size]
    query: Tensor
    # [n, key heads, key size]
    key: Tensor
    # [n, value heads, value size]
    value: Tensor
    # [n, value heads]: the factor of the state before the step
    decay: Tensor
    # [n, value heads]: the share of the delta that is written; None: the value itself is added
    beta: Tensor | None = None

    def __getitem__(self, part: slice) -> RuleStep:
        beta = None if self.beta is None else self.beta[part]
        return RuleStep(self.query[part], self.key[part], self.value[part], self.decay[part], beta)


def convolve_anywhere(x: Tensor, weight: Tensor, bias: Tensor | None, state: RecurrentState, nodes: Nodes) -> Tensor:
    """Convolution of x [n, channels] with weight [channels, taps] along the path of each node, whose last tap is the node itself.

    Records x at the slots of `nodes`, which lie where the records do; returns [n, channels] of x's dtype, summed in float32 in
    the order of positions. Before the start of a text there are zeros."""
    places = nodes.slots % state.places
    state.inputs[nodes.rows, places] = x.to(state.inputs.dtype)
    taps = weight.shape[1]
    positions = nodes.positions[:, None] - torch.arange(taps - 1, -1, -1, device=x.device)
    inputs = state.inputs[nodes.rows[:, None], _places(nodes, positions, state.places)]
    inputs = torch.where((positions >= 0)[..., None], inputs.float(), 0.0)
    total = torch.zeros_like(x, dtype=torch.float32) if bias is None else bias.float().expand(x.shape)
    for tap in range(taps):
        total = total + inputs[:, tap] * weight[:, tap].float()
    return total.to(x.dtype)


def recur_anywhere(step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
    """The rule after each of `nodes`, [n, value heads, value size] float32; their records are put at their slots.

    together: no node is another's ancestor, and bits do not matter: they go TOGETHER at a time. Else they go one after another,
    always in the same shape."""
    most = TOGETHER if together else 1
    return torch.cat([_recur(step[i : i + most], state, nodes[i : i + most]) for i in range(0, len(nodes), most)])


def working_bytes(shape: RecurrentShape) -> int:
    """What `recur_anywhere` computes with, in bytes: gathered records and states, twice for a while."""
    records = SPAN * (shape.key_heads * shape.key_size + shape.value_heads * (shape.value_size + 3))
    states = shape.value_heads * shape.key_size * shape.value_size
    return 4 * TOGETHER * (2 * records + 2 * states)


def fold_anywhere(state: RecurrentState, row: int, number: int) -> None:
    """Make the state of `row` after FOLD * (number + 1) tokens, from the one after FOLD * number tokens and the records since.

    A layer with a convolution alone has no state."""
    if not state.shape.value_heads:
        return
    if state.shape.by_channel:
        fold_by_channel(state, row, number)
        return
    places = (FOLD * number + torch.arange(FOLD, device=state.keys.device)) % state.places
    keys, values, decays = state.keys[row, places], state.values[row, places], state.decays[row, places]
    shared = state.shape.value_heads // state.shape.key_heads
    folded = state.states[row, number % 2].clone()
    for i in range(FOLD):
        key = keys[i].repeat_interleave(shared, 0)
        folded = folded * decays[i, :, None, None] + key[..., None] * values[i, :, None]
    state.states[row, (number + 1) % 2] = folded


def most_walked(state: RecurrentState) -> int:
    """Nodes that a device may walk over together: so many that none lies in the place of a record that another one reads."""
    return state.places - SPAN


def _places(nodes: Nodes, positions: Tensor, places: int) -> Tensor:
    """[n, m] where the records of `positions` [n, m] on the path of each node lie; of positions below 0: anywhere."""
    straight = positions < nodes.prefix[:, None]
    if not nodes.tail.shape[1]:
        return positions.clamp(min=0) % places
    beyond = nodes.tail.gather(1, (positions - nodes.prefix[:, None]).clamp(0, nodes.tail.shape[1] - 1))
    return torch.where(straight, positions, beyond).clamp(min=0) % places


def _recur(step: RuleStep, state: RecurrentState, nodes: Nodes) -> Tensor:
    """The rule after nodes of which none is another's ancestor."""
    rows = nodes.rows[:, None]
    base = (nodes.positions // FOLD - 1).clamp(min=0)
    positions = base[:, None] * FOLD + torch.arange(SPAN, device=rows.device)
    seen = positions < nodes.positions[:, None]
    places = _places(nodes, positions, state.places)
    keys = torch.where(seen[..., None, None], state.keys[rows, places], 0.0)
    values = torch.where(seen[..., None, None], state.values[rows, places], 0.0)
    decays = torch.where(seen[..., None], state.decays[rows, places], 1.0)
    # what is left of each step's own part, and of the base, before the decay of the node itself
    left = torch.cat([decays[:, 1:], torch.ones_like(decays[:, :1])], 1).flip(1).cumprod(1).flip(1)
    whole = (left[:, :1] * decays[:, :1]).transpose(1, 2)
    heads, shared = step.key.shape[1], step.value.shape[1] // max(step.key.shape[1], 1)
    folded = state.states[nodes.rows, base % 2]
    folded = folded.view(-1, heads, shared, *folded.shape[2:])
    values = values.view(-1, SPAN, heads, shared, values.shape[-1])

    def read(x: Tensor) -> Tensor:
        """S' x before the node, for x [n, key heads, key size]: [n, value heads, value size]."""
        near = torch.einsum("nphk,nhk->nph", keys, x)[..., None] * left.view(-1, SPAN, heads, shared)
        far = torch.einsum("nhgkv,nhk->nhgv", folded, x)
        return whole * far.flatten(1, 2) + torch.einsum("nphg,nphgv->nhgv", near, values).flatten(1, 2)

    fade = step.decay[..., None]
    u = step.value if step.beta is None else step.beta[..., None] * (step.value - fade * read(step.key))
    here = nodes.slots % state.places
    for tensor, record in ((state.keys, step.key), (state.values, u), (state.decays, step.decay)):
        tensor[nodes.rows, here] = record
    own = (step.query * step.key).sum(-1)[..., None, None] * u.view(-1, heads, shared, u.shape[-1])
    return fade * read(step.query) + own.flatten(1, 2)
