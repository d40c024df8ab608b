"""A pass of the target in one forward of the stock model, whatever its number of nodes: for devices whose products, norms and
attention give each row the same bits beside any others. `rows_apart` tries that on the model itself before it is relied on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compressed import MakeEntry
from ..kernels import team
from ..kernels.attention import ALL, AttentionSpec, Chosen
from ..kernels.chosen_keys import IndexQuery
from ..kernels.expert_kernels import ExpertKernels
from ..kernels.recurrence import RuleStep, most_walked
from ..layer_states import FullState
from ..recurrent import RecurrentState, begins, tops
from ..tree import Nodes, TokenTree
from .by_rows import by_rows
from .mixtures.routed import Routed, Rows
from .pooled_keys import PooledQuery
from .recurrent_layers.channel_rule import recur
from .streamed import Placed, pass_cache, place_of_one

if TYPE_CHECKING:
    from ..devices import Device
    from .target import Target

# a pass has a multiple of so many rows, the last of them padding: torch sums rows of a matrix otherwise where there are fewer
LEAST = 16
# nodes that take as long as one
AT_ONCE = 64
# nodes at once of recurrent layers, which read states that those before have folded
RECURRENT = 32
# rows, and a position of each
Tops = list[tuple[int, int]]
# nodes of the passes that are compared with each other
TRIED = (1, 40, 600)
# of which so many have logits
COMPARED = 48


class WholePass:
    """All nodes of a pass: one forward of the stock model, without its head."""

    def __init__(self, view: Target, nodes: Nodes, hidden: Tensor | None = None) -> None:
        self.view = view
        self.nodes = nodes
        # [len(nodes), taps, hidden size]: where hidden states go; None: nobody asked for them.
        self.hidden = hidden
        self.count = len(nodes)
        self.padding = -self.count % LEAST
        self.placed = Placed(view.cache, nodes, view.device, view.stages)
        self.place = place_of_one(self.placed.first, view.device)
        # Keys and values of a layer that cannot take those of all nodes at once.
        self._late: tuple[Tensor, Tensor] | None = None
        # By the most nodes that recurrent layers take at once: see `_recurrent`.
        self._parts: dict[int, list[tuple[slice, Tops, Tops]]] = {}

    def forward(self) -> Tensor:
        """Run the stock model; returns what its base gives for each node [n, hidden size], as its head takes it."""
        features: Tensor = self.view.base(**self.inputs()).last_hidden_state[0, : self.count]
        return features

    def inputs(self) -> dict[str, Any]:
        """What the stock model is given."""
        padding = (0, self.padding)
        positions = nn.functional.pad(self.nodes.positions, padding)[None].to(self.view.device.where)
        ids = self.view.embed(nn.functional.pad(self.nodes.tokens, padding))[None]
        return {"input_ids": ids, "position_ids": positions, "past_key_values": pass_cache(positions), "use_cache": True}

    @property
    def tokens(self) -> Tensor:
        return nn.functional.pad(self.nodes.tokens, (0, self.padding))

    @property
    def expert_kernels(self) -> ExpertKernels | None:
        return self.view.device.expert_kernels()

    def linear(self, index: int, x: Rows) -> Tensor:
        return self.view.multiply(index, [x], self.count)[0]

    def write_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        keys, values = keys[: self.count], values[: self.count]
        self._late = None
        if self.count <= self._at_once(layer):
            self.view.cache.write(layer, self.placed.at(layer)[1], self.place, keys, values)
        else:
            self._late = keys, values

    def _at_once(self, layer: int) -> int:
        """Nodes whose keys and values `layer` takes at once, with none of them in the place of one that they look back at: those of
        a tree, or as many as a row can go back."""
        cache = self.view.cache
        return max(cache.layers[layer].goes_back, cache.scratch)

    def choose(self, layer: int, keys: Tensor, asked: IndexQuery | PooledQuery) -> Chosen:
        return self.placed.choose(layer, keys[: self.count], asked[: self.count])

    def history(self, layer: int) -> Tensor:
        return nn.functional.pad(self.view.cache.histories[layer].before(self.nodes), (0, 0, 0, self.padding))

    def compress(self, layer: int, parts: Tensor, make: MakeEntry, *, of_index: bool) -> None:
        self.placed.entries.compress(layer, parts[: self.count], make, of_index=of_index)

    def choose_entries(self, layer: int, asked: IndexQuery) -> None:
        self.placed.entries.choose(layer, asked[: self.count])

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        view = self.view
        state = view.cache.layer(layer, spec.window)
        spec = self.placed.entries.looked_at(layer, spec)
        if self._late is None:
            device, there = self.placed.seen_in(layer, spec)
            out = device.attend(query[: self.count], state.keys, state.values, there, spec)
        else:
            out = self._by_and_by(layer, state, query, spec, self._late)
        return nn.functional.pad(out, (0, 0, 0, 0, 0, self.padding))

    def _by_and_by(
        self, layer: int, state: FullState, query: Tensor, spec: AttentionSpec, written: tuple[Tensor, Tensor]
    ) -> Tensor:  # fmt: skip
        """Attention of a layer that slides: what a node looks back at is overwritten by nodes far after it."""
        device, there = self.placed.at(layer)
        seen = there if spec.chosen.nodes is None else spec.chosen.nodes
        found = []
        for part in _parts(self.count, self._at_once(layer)):
            self.view.cache.write(layer, there[part], None, *(each[part] for each in written))
            found.append(device.attend(query[part], state.keys, state.values, seen[part], spec[part]))
        return torch.cat(found)

    def convolve(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor | None, number: int = 0) -> Tensor:
        state = self.view.cache.recurrent[layer].convolved(number)
        device, there = self.placed.at(layer)
        parts = _parts(self.count, self._walked(device, state))
        out = _joined([device.convolve(x[part], weight, bias, state, there[part]) for part in parts])
        return nn.functional.pad(out, (0, 0, 0, self.padding))

    def recur(self, layer: int, step: RuleStep) -> Tensor:
        device, there = self.placed.at(layer)
        state = self.view.cache.recurrent[layer]
        walks, most = device.walks(state.shape), self._walked(device, state)
        found = []
        for part, starts, ends in self._recurrent(most):
            self.view.cache.advanced(layer, starts if walks else ends)
            found.append(recur(device, step[part], state, there[part], together=False))
            for row, position in ends:
                state.walked(row, position)
        return nn.functional.pad(_joined(found), (0, 0, 0, 0, 0, self.padding))

    def _walked(self, device: Device, state: RecurrentState) -> int:
        """Nodes that a recurrent layer takes at once on its device."""
        return most_walked(state) if device.walks(state.shape) else RECURRENT

    def _recurrent(self, most: int) -> list[tuple[slice, Tops, Tops]]:
        """The nodes that recurrent layers take at once, `most` of them, what must be folded before, and where their rows end."""
        if most not in self._parts:
            parts = _parts(self.count, most)
            self._parts[most] = [(part, begins(self.nodes[part]), tops(self.nodes[part])) for part in parts]
        return self._parts[most]

    def tap(self, number: int, states: Tensor) -> None:
        if self.hidden is not None:
            self.hidden[:, number] = states[: self.count]


class HeadAlone:
    """The end of such a pass: only the output head is multiplied, by its exact weights."""

    def __init__(self, view: Target) -> None:
        self.view = view

    def linear(self, index: int, x: Tensor) -> Tensor:
        return self.view.multiply(index, [x], len(x))[0]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(count: int, most: int) -> list[slice]:
    return [slice(start, min(start + most, count)) for start in range(0, count, most)]


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

    parts = _parts(wide, narrow)
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


def head_of(view: Target, features: Tensor, wanted: Tensor) -> Tensor:
    """Logits [k, vocab] of the `wanted` nodes, from the `features` [n, hidden size] of all."""
    chosen = features[wanted.to(features.device)]
    rows = nn.functional.pad(chosen, (0, 0, 0, -len(chosen) % LEAST))
    return view.head(rows)[: len(chosen)]
