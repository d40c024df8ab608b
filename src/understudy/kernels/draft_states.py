"""What a draft's nodes do over latent states on a processor: one run turns queries and keys, keeps these in the cache, and attends
(multi-head latent attention: DeepSeek-V2, arXiv 2405.04434)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..layer_states import FullState
from ..tree import Nodes
from .draft_layer import attend
from .state_form import StateForm, StateRows

# Heads of queries that go through the keys together at least, where they are shared out over threads.
TOGETHER = 8


def attend_states(
    rows: StateRows, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: StateForm
) -> Tensor:
    """Attention of `nodes`, of which products made `rows`, over `state`, which gets their states: [n, heads * rank].

    `turns`: cosines and sines [n, angles] of the nodes' positions."""
    shares = shares_of(form.asked.heads)
    return attend(_side_by_side(rows, form, shares), turns, _shared(state, shares), nodes, form.heads)


def shares_of(heads: int) -> int:
    """How many runs of query `heads` there are, each of which attends as if it had keys of its own."""
    return next(shares for shares in range(max(heads // TOGETHER, 1), 0, -1) if heads % shares == 0)


def _side_by_side(rows: StateRows, form: StateForm, shares: int) -> Tensor:
    """Queries of all heads, keys and values of each share, side by side [n, ...]."""
    count, heads, rank, plain = len(rows.query), form.asked.heads, form.rank, form.asked.columns
    kept = torch.rms_norm(rows.state.float(), (rank,), form.norm.weight, form.norm.epsilon)
    size = rank + rows.turned.shape[1]
    made = rows.query.new_empty((count, heads * size + shares * (size + rank)))
    ends = heads * size, (heads + shares) * size
    parts = zip(made.tensor_split(ends, 1), (size, size, rank), strict=True)
    asked, keys, values = (part.view(count, -1, width) for part, width in parts)
    asked[..., :rank] = form.asked(rows.query[..., :plain])
    asked[..., rank:] = rows.query[..., plain:]
    keys[..., :rank] = values[:] = kept[:, None]
    keys[..., rank:] = rows.turned[:, None]
    return made


def _shared(state: FullState, shares: int) -> FullState:
    """`state` as if each share had a head of keys and values of its own, which all lie at the same place."""
    seen = copy.copy(state)
    seen.keys, seen.values = (slab.expand(-1, shares, -1, -1) for slab in (state.keys, state.values))
    return seen
