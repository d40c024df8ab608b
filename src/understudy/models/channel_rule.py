"""The rule of recurrent layers that forget at a speed of its own in each channel of a key (KDA), in plain torch for any device.

One step, for each head, with S [key size, value size]: S = decay (x) S + key (x) u, where decay [key size] has a factor for each
row of S, and the rest is as in `kernels.recurrence`. Nodes read the state that was folded last for them, and the records since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels import recurrence
from ..kernels.recurrence import SPAN, TOGETHER, RuleStep
from ..recurrent import FOLD, RecurrentShape, RecurrentState
from ..tree import Nodes

if TYPE_CHECKING:
    from ..devices import Device


def recur(device: Device, step: RuleStep, state: RecurrentState, nodes: Nodes, together: bool) -> Tensor:
    """The rule after each of `nodes`, by this module where decays belong to channels, and else by `device`; see `Device.recur`."""
    if not state.shape.by_channel:
        return device.recur(step, state, nodes, together)
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
    decays = torch.where(seen, state.decays[rows, places], 1.0)
    # what is left of each step's own part, and of the base, before the decay of the node itself
    left = torch.cat([decays[:, 1:], torch.ones_like(decays[:, :1])], 1).flip(1).cumprod(1).flip(1)
    whole = left[:, 0] * decays[:, 0]
    keys = keys * left
    folded = state.states[nodes.rows, base % 2]

    def read(x: Tensor) -> Tensor:
        """S' x before the node, for x [n, heads, key size]: [n, heads, value size]."""
        near = torch.einsum("nphk,nhk->nph", keys, x)
        return torch.einsum("nhkv,nhk->nhv", folded, whole * x) + torch.einsum("nph,nphv->nhv", near, values)

    u = step.value
    if step.beta is not None:
        u = step.beta[..., None] * (u - read(step.decay * step.key))
    here = nodes.slots % state.places
    for tensor, record in ((state.keys, step.key), (state.values, u), (state.decays, step.decay)):
        tensor[nodes.rows, here] = record
    return read(step.decay * step.query) + (step.query * step.key).sum(-1, keepdim=True) * u
