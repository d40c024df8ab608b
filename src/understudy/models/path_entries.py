"""What the nodes of a pass find of compressed keys on their paths: entries of whole blocks, all or those that an index chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ..cache import Cache
from ..compressed import INDEX, OWN, CompressedState, MakeEntry
from ..devices import Device
from ..kernels.attention import AttentionSpec, Chosen
from ..kernels.chosen_keys import IndexQuery
from ..tree import Nodes


class PathEntries:
    """The entries that nodes of one pass find in the layers of `cache` that compress keys. `at`: the device of a layer, with the
    nodes there."""

    def __init__(self, cache: Cache, at: Callable[[int], tuple[Device, Nodes]]) -> None:
        self.cache = cache
        self.at = at
        # by the tokens of a block: the nodes as those see entries that take them for tokens
        self._ended: dict[int, Nodes] = {}
        # by layer: which of them its index has chosen; None: all
        self._chosen: dict[int, Tensor | None] = {}
        # by the shapes of layers that look at all of them: the nodes as attention sees them
        self._seen: dict[tuple[int, int, int], Nodes] = {}

    def state(self, layer: int) -> CompressedState | None:
        """The state of `layer`; None: it compresses nothing."""
        state = self.cache.layers[layer]
        return state if isinstance(state, CompressedState) else None

    def compress(self, layer: int, parts: Tensor, make: MakeEntry, *, of_index: bool) -> None:
        """Put `parts` [n, numbers] of the nodes in `layer`, for its index or its attention, and let `make` make the entries of
        blocks that end there."""
        state = self.state(layer)
        assert state is not None, f"layer {layer} has entries that its config does not tell of"
        state.compress(self.at(layer)[1], INDEX if of_index else OWN, parts, make)

    def choose(self, layer: int, asked: IndexQuery) -> None:
        """Choose by the index of `layer` what each of the nodes looks at there."""
        state = self.state(layer)
        assert state is not None and state.index is not None, f"layer {layer} has an index that its config does not tell of"
        device, nodes = self.at(layer)
        self._chosen[layer] = device.choose(asked, state.index, self._ended_in(state, nodes)).mask

    def looked_at(self, layer: int, spec: AttentionSpec) -> AttentionSpec:
        """How `layer` attends, where stock code says `spec`: if it compresses keys, to what nodes see of entries and a window."""
        state = self.state(layer)
        if state is None:
            return spec
        chosen = self._chosen.get(layer)
        same = state.compressed.rate, state.tokens, spec.window
        seen = self._seen.get(same) if chosen is None else None
        if seen is None:
            nodes = self.at(layer)[1]
            seen = state.seen(nodes, self._ended_in(state, nodes), spec.window, chosen)
            if chosen is None:
                self._seen[same] = seen
        return replace(spec, window=0, chosen=Chosen(nodes=seen))

    def _ended_in(self, state: CompressedState, nodes: Nodes) -> Nodes:
        rate = state.compressed.rate
        if rate not in self._ended:
            self._ended[rate] = state.ended(nodes)
        return self._ended[rate]
