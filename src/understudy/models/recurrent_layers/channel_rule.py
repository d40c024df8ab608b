"""The rule of recurrent layers that forget at a speed of its own in each channel of a key (KDA, Mamba), in plain torch.

One step, for each head, with S [key size, value size]: S = decay (x) S + key (x) u, where decay [key size] has a factor for each
row of S, and the rest is as in `kernels.recurrence`. Nodes read the state that was folded last for them, and the records
since, without asking a device for anything, where it has no kernel for that; on a processor states are stepped
(`channel_steps`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels import recurrence
from ...kernels.recurrence import SPAN, TOGETHER, RuleStep
from ...recurrent import FOLD, RecurrentShape, RecurrentState, factors
from ...tree import Nodes
from . import channel_steps

if TYPE_CHECKING:
    from ...devices import Device


def recur(device: Device, step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
    """The rule after each of `nodes`, by this module where decays belong to channels and `device` has no kernel for that, else by
    `device`; see `Device.recur`."""
    if not state.shape.by_channel or device.walks(state.shape):
        return device.recur(step, state, nodes, together)
    if state.tips is not None and not device.own_memory:
        return channel_steps.recur(step, state, nodes)
    most = TOGETHER if together else 1
    return torch.cat([_recur(step[i : i + most], state, nodes[i : i + most]) for i in range(0, len(nodes), most)])


def working_bytes(shape: RecurrentShape) -> int:
    """What `recur` computes with, in bytes: gathered records, with what is left of them, and states, twice for a while."""
    if not shape.by_channel:
        return recurrence.working_bytes(shape)
    records = SPAN * shape.value_heads * (3 * shape.key_size + shape.value_size)
    return 4 * TOGETHER * 2 * (records + shape.value_heads * shape.key_size * shape.value_size)


def _recur(step: RuleStep, state: RecurrentState, nodes: Nodes) -> Tensor:
    """The rule after nodes of which none is another's ancestor; their records are put at their slots."""
    rows = nodes.rows[:, None]
    base = (nodes.positions // FOLD - 1).clamp(min=0)
    positions = base[:, None] * FOLD + torch.arange(SPAN, device=rows.device)
    seen = (positions < nodes.positions[:, None])[..., None, None]
    places = nodes.slots_at(positions).clamp(min=0) % state.places
    # [n, SPAN, heads, key size or value size]
    keys = torch.where(seen, state.keys[rows, places], 0.0)
    values = torch.where(seen, state.values[rows, places], 0.0)
    left, whole = _left(state, nodes, places, seen)
    keys = keys * left
    decay = factors(state, step.decay)
    folded = state.states[nodes.rows, base % 2]

    def read(x: Tensor) -> Tensor:
        """S' x before the node, for x [n, heads, key size]: [n, heads, value size]."""
        near = torch.einsum("nphk,nhk->nph", keys, x)
        return torch.einsum("nhkv,nhk->nhv", folded, whole * x) + torch.einsum("nph,nphv->nhv", near, values)

    u = step.value
    if step.beta is not None:
        u = step.beta[..., None] * (u - read(decay * step.key))
    here = nodes.slots % state.places
    for tensor, record in ((state.keys, step.key), (state.values, u), (state.decays, step.decay)):
        tensor[nodes.rows, here] = record
    return read(decay * step.query) + (step.query * step.key).sum(-1, keepdim=True) * u


def _left(state: RecurrentState, nodes: Nodes, places: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """What is left before the decay of each node of each step's own part [n, SPAN, value heads, key size], and of the base
    [n, value heads, key size]."""
    decays = state.decays[nodes.rows[:, None], places]
    if state.shape.rated:
        lengths = torch.where(seen[..., 0], decays, 0.0)
        behind = lengths.flip(1).cumsum(1).flip(1)
        return factors(state, behind - lengths), factors(state, behind[:, 0])
    decays = torch.where(seen, decays, 1.0)
    left = torch.cat([decays[:, 1:], torch.ones_like(decays[:, :1])], 1).flip(1).cumprod(1).flip(1)
    return left, left[:, 0] * decays[:, 0]
