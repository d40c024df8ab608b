"""A pass of the target in one forward of the stock model, whatever its number of nodes: for devices whose products, norms and
attention give each row the same bits beside any others. `rows_apart` tries that on the model itself before it is relied on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..compressed import MakeEntry
from ..kernels.attention import AttentionSpec, Chosen
from ..kernels.chosen_keys import IndexQuery
from ..kernels.expert_kernels import ExpertKernels
from ..kernels.recurrence import RuleStep, most_walked
from ..layer_states import FullState
from ..recurrent import RecurrentState, begins, tops
from ..tree import Nodes
from .mixtures.routed import Rows
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
        for part in parts_of(self.count, self._at_once(layer)):
            self.view.cache.write(layer, there[part], None, *(each[part] for each in written))
            found.append(device.attend(query[part], state.keys, state.values, seen[part], spec[part]))
        return torch.cat(found)

    def convolve(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor | None, number: int = 0) -> Tensor:
        state = self.view.cache.recurrent[layer].convolved(number)
        device, there = self.placed.at(layer)
        parts = parts_of(self.count, self._walked(device, state))
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
            parts = parts_of(self.count, most)
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


def parts_of(count: int, most: int) -> list[slice]:
    return [slice(start, min(start + most, count)) for start in range(0, count, most)]


def head_of(view: Target, features: Tensor, wanted: Tensor) -> Tensor:
    """Logits [k, vocab] of the `wanted` nodes, from the `features` [n, hidden size] of all."""
    chosen = features[wanted.to(features.device)]
    rows = nn.functional.pad(chosen, (0, 0, 0, -len(chosen) % LEAST))
    return view.head(rows)[: len(chosen)]
