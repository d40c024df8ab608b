"""Whether rows of a model know each other: passes are rehearsed with stand-ins for weights and attention, and compared by bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..compressed import MakeEntry
from ..kernels import team
from ..kernels.attention import ALL, AttentionSpec, Chosen
from ..kernels.chosen_keys import IndexQuery
from ..kernels.recurrence import RuleStep
from ..tree import Nodes, TokenTree
from .by_rows import by_rows
from .mixtures.routed import Routed, Rows
from .pooled_keys import PooledQuery
from .whole_pass import WholePass, head_of, parts_of

if TYPE_CHECKING:
    from .target import Target

# nodes of the passes that are compared with each other
TRIED = (1, 40, 600)
# of which so many have logits
COMPARED = 48


class Rehearsal(WholePass):
    """A pass in which attention gives back queries: it is each node's own affair on every device, and nothing is written for it."""

    def write_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Nothing reads them."""

    def choose(self, layer: int, keys: Tensor, asked: IndexQuery | PooledQuery) -> Chosen:
        """So is what an index chooses."""
        return ALL

    def compress(self, layer: int, parts: Tensor, make: MakeEntry, *, of_index: bool) -> None:
        """So is each entry."""

    def choose_entries(self, layer: int, asked: IndexQuery) -> None: ...

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        size = self.view.cache.layers[layer].shape.value_size
        return query[:, :, torch.arange(size, device=query.device) % query.shape[2]]

    def convolve(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor | None, number: int = 0) -> Tensor:
        """So is what a device's kernels do that walk over nodes, and nothing is recorded for it."""
        return x if self._walks(layer) else super().convolve(layer, x, weight, bias, number)

    def recur(self, layer: int, step: RuleStep) -> Tensor:
        """A number of each head's query and key stands for what the rule makes of all."""
        if not self._walks(layer):
            return super().recur(layer, step)
        shared = step.value.shape[1] // step.key.shape[1]
        asked = (step.query[..., :1] * step.key[..., :1]).repeat_interleave(shared, 1, output_size=step.value.shape[1])
        # of channels that forget at a speed of their own, the first one's
        return asked + step.decay.reshape(*step.value.shape[:2], -1)[..., :1] * step.value

    def _walks(self, layer: int) -> bool:
        return self.placed.at(layer)[0].walks(self.view.cache.recurrent[layer].shape)


@torch.inference_mode()
def rows_apart(view: Target, outputs: Sequence[int], longest: int) -> bool:
    """Whether each node has the same bits in passes of different sizes: a chain's first nodes are compared, with stand-ins for
    attention and for the weights, which need not be here. From now on Linears that lie whole multiply each row for itself, where
    the device has a kernel for that. `outputs`: the outputs of each Linear; `longest`: tokens of the longest
    text, of which a model may have no more positions.

    Row 0 of the cache must be empty."""
    cache = view.cache
    tokens = [1 + 7 * place % 90 for place in range(min(max(TRIED), longest))]
    if (kernels := view.device.expert_kernels()) is not None:
        by_rows(view.model, view.current, WholePass, kernels.decide)
    weightless = replace(view, multiply=stand_in(outputs), whole=True)
    seen: list[Tensor] = []
    try:
        for count in TRIED:
            nodes = Nodes.of(TokenTree.chain(tokens[:count]), 0, 0)
            cache.begin_pass(nodes)
            view.current.under_way = rehearsal = Rehearsal(weightless, nodes)
            features = rehearsal.forward()
            seen.append(head_of(weightless, features, torch.arange(min(len(nodes), COMPARED))))
            cache.rewind(0, 0)
    finally:
        view.current.under_way = None
    return all(torch.equal(logits, seen[-1][: len(logits)]) for logits in seen)


@torch.inference_mode()
def tiles_apart(view: Target, outputs: Sequence[int], wide: int, narrow: int) -> bool:
    """Whether each of `wide` nodes has the same bits in tiles of `narrow` rows as in one of all, with stand-ins as in `rows_apart`,
    and whether torch's own operations run on one thread or on two.

    Where layers are recurrent, a row of the cache must be empty; else no row is touched."""
    cache = view.cache
    row = cache.lengths.index(0) if cache.recurrent else 0
    nodes = Nodes.of(TokenTree.chain([1 + 7 * place % 90 for place in range(wide)]), row, 0)
    weightless = replace(view, multiply=stand_in(outputs))

    def rehearsed(parts: list[slice], stock: int) -> Tensor:
        if cache.recurrent:
            cache.begin_pass(nodes)
        found = []
        with team.shared_by(team.threads(), stock):
            for part in parts:
                view.current.under_way = rehearsal = Rehearsal(weightless, nodes[part])
                found.append(rehearsal.forward())
        if cache.recurrent:
            cache.rewind(row, 0)
        return torch.cat(found)

    parts = parts_of(wide, narrow)
    if not cache.recurrent:
        # none of them needs what those before it leave
        parts = [parts[0], parts[-1]]
    try:
        alone = rehearsed([slice(0, wide)], 1)
        shared = alone if torch.get_num_threads() == 1 else rehearsed([slice(0, wide)], 2)
        expected = torch.cat([alone[part] for part in parts])
        return torch.equal(shared, alone) and torch.equal(rehearsed(parts, 1), expected)
    finally:
        view.current.under_way = None


def stand_in(outputs: Sequence[int]) -> Callable[[int, Sequence[Rows], int], list[Tensor]]:
    """What gives outputs that are inputs in another order, as often as it takes: no row knows another, and no weight is needed."""

    def multiply(index: int, tiles: Sequence[Rows], _: int) -> list[Tensor]:
        x = tiles[0].rows if isinstance(tiles[0], Routed) else tiles[0]
        size = x.shape[1]
        start = (index + 1) * 31 % size
        turned = torch.cat([x[:, start:], -x[:, :start]], 1)
        return [turned.repeat(1, -(-outputs[index] // size))[:, : outputs[index]]]

    return multiply
