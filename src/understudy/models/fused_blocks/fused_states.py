"""Attention over latent states for levels of the draft, in fewer steps: a norm is part of the products after it, and one run turns
queries and keys, keeps these in the cache, and attends (multi-head latent attention: DeepSeek-V2, arXiv 2405.04434)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.blocks import BlockKernels, JoinedProduct
from ...kernels.head_form import HeadForm
from ...kernels.join_form import Norm
from ...layer_states import FullState
from ...small_keys import LINES
from ..stock.latent import LatentHeads
from .block_samples import Sample
from .fused import LevelPass, keeps_alike

# Heads of queries that go through the keys together at least, where they are shared out over threads.
TOGETHER = 8


@dataclass(frozen=True)
class FusedStates:
    """The attention of a block: hidden states x [n, hidden size] -> x and what attention adds to it.

    `first` makes what queries come of, the latent state before its `norm`, and what positions turn of a key. `queries` makes
    queries of the first of those; None: they are queries."""

    kernels: BlockKernels
    first: JoinedProduct
    queries: JoinedProduct | None
    norm: Norm
    states: LatentHeads
    heads: HeadForm
    output: JoinedProduct
    layer: int

    @cached_property
    def shares(self) -> int:
        """How many runs of query heads there are, each of which attends as if it had keys of its own."""
        count = self.states.asked.heads
        return next(shares for shares in range(max(count // TOGETHER, 1), 0, -1) if count % shares == 0)

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor:
        state = level.cache.layer(self.layer, self.heads.spec.window)
        given = self._made(self.first(x)), (turns[0][0], turns[1][0]), self._shared(state), level.nodes_in(self.layer)
        attended = self.kernels.attend(*given, self.heads)
        widened = self.states.widened(attended.view(len(x), -1, self.states.rank))
        return self.output(widened.reshape(len(x), -1), x)

    def _made(self, line: Tensor) -> Tensor:
        """Queries of all heads, keys and values of each share, side by side, of what the first product made."""
        states, rank, count, heads = self.states, self.states.rank, len(line), self.states.asked.heads
        given, latent, turned = line[:, : self._given], line[:, self._given : self._given + rank], line[:, self._given + rank :]
        latent = torch.rms_norm(latent.float(), (rank,), self.norm.weight, self.norm.epsilon)
        query = (given if self.queries is None else self.queries(given.contiguous())).view(count, heads, -1)
        size = rank + turned.shape[1]
        made = line.new_empty((count, heads * size + self.shares * (size + rank)))
        ends = heads * size, (heads + self.shares) * size
        parts = zip(made.tensor_split(ends, 1), (size, size, rank), strict=True)
        asked, keys, values = (part.view(count, -1, width) for part, width in parts)
        asked[..., :rank] = states.asked(query[..., : states.plain])
        asked[..., rank:] = query[..., states.plain :]
        keys[..., :rank] = values[:] = latent[:, None]
        keys[..., rank:] = turned[:, None]
        return made

    def _shared(self, state: FullState) -> FullState:
        """`state` as if each share had a head of keys and values of its own, which all lie at the same place."""
        seen = copy.copy(state)
        seen.keys, seen.values = (slab.expand(-1, self.shares, -1, -1) for slab in (state.keys, state.values))
        return seen

    @property
    def _given(self) -> int:
        """How many numbers queries come of."""
        asked = self.states.asked
        return asked.heads * (asked.columns + self._turned) if self.queries is None else self.queries.columns

    @property
    def _turned(self) -> int:
        """How many numbers of a query meet what positions may turn of a key."""
        if self.queries is not None:
            return self.first.outputs - self.queries.columns - self.states.rank
        heads, columns = self.states.asked.heads, self.states.asked.columns
        return (self.first.outputs - self.states.rank - heads * columns) // (heads + 1)

    def alike(self, sample: Sample, level: LevelPass) -> bool:
        """Whether it gives what the stock attention gave, and leaves the same in the cache. That stays as the stock one left it."""
        state = level.cache.layer(self.layer, self.heads.spec.window)
        return self.fits(state, sample) and keeps_alike(self, sample, level, state)

    def fits(self, state: FullState, sample: Sample) -> bool:
        """Are products as large as each other and `state` ask for, in which nothing has 8 bits?"""
        asked, rank, turned = self.states.asked, self.states.rank, self.heads.turned(sample.turns[0].shape[-1])
        whole = self.first.outputs == self._given + rank + self._turned and self._turned > 0
        queries = self.queries is None or self.queries.outputs == asked.heads * (asked.columns + self._turned)
        kept = state.keys.dtype != LINES and (state.keys.shape[3], state.values.shape[3]) == (rank + self._turned, rank)
        output = self.output.columns == asked.heads * self.states.widened.outputs
        return whole and queries and kept and output and turned in (0, self._turned)
