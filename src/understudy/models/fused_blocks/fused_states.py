"""Attention over latent states for levels of the draft, in fewer steps: a norm is part of the products after it, and a device's
kernels do what lies between the products (multi-head latent attention: DeepSeek-V2, arXiv 2405.04434)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ...kernels.blocks import BlockKernels, JoinedProduct
from ...kernels.head_form import HeadForm
from ...kernels.join_form import Norm
from ...kernels.state_form import StateForm, StateRows
from ...layer_states import FullState
from ...small_keys import LINES
from ..stock.latent import LatentHeads
from .block_samples import Sample
from .fused import LevelPass, keeps_alike


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
    def form(self) -> StateForm:
        return StateForm(self.heads, self.norm, self.states.asked)

    def __call__(self, x: Tensor, turns: tuple[Tensor, Tensor], level: LevelPass) -> Tensor:
        state = level.cache.layer(self.layer, self.heads.spec.window)
        given = self._made(self.first(x)), (turns[0][0], turns[1][0]), state, level.nodes_in(self.layer)
        attended = self.kernels.attend_states(*given, self.form)
        widened = self.states.widened(attended.view(len(x), -1, self.states.rank))
        return self.output(widened.reshape(len(x), -1), x)

    def _made(self, line: Tensor) -> StateRows:
        """Of the `line` [n, ...] that the first product made."""
        ends = self._given, self._given + self.states.rank
        given, state, turned = line.tensor_split(ends, 1)
        query = given if self.queries is None else self.queries(given.contiguous())
        return StateRows(query.view(len(line), self.states.asked.heads, -1), state, turned)

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
