"""The draft view: the same modules with the substitute's weights alone. It reads no slow memory, and writes scratch slots, which
the target overwrites. Bits do not matter here, so the device may use its fastest attention, and usual blocks run in fewer steps
(`fused`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..cache import Cache
from ..compressed import MakeEntry
from ..devices import Device, DraftAttention
from ..kernels.attention import AttentionSpec, Chosen
from ..kernels.chosen_keys import IndexQuery
from ..kernels.expert_kernels import ExpertKernels
from ..kernels.recurrence import RuleStep
from ..recurrent import tops
from ..tree import Nodes, TokenTree
from .fused_blocks.block_samples import BlockSamples
from .fused_blocks.block_structure import BlockModules, MlpModules, usual_blocks, usual_mlps
from .fused_blocks.fused_channels import channel_layers, channel_samples
from .fused_blocks.fused_experts import mixed_samples, mixtures
from .fused_blocks.fusing import FusedParts, Fusing
from .fused_blocks.joiner import Joiner
from .mixtures.routed import Rows
from .pooled_keys import PooledQuery
from .recurrent_layers.channel_rule import recur
from .several_devices.stages import Stages
from .streamed import CurrentPass, Pass, Placed, pass_cache, place_of_one

T = TypeVar("T")
# nodes of a level that compares fused blocks with the stock ones
COMPARED = 8


@dataclass
class Draft:
    """The draft view: runs levels with the substitutes.

    `linears[i]` multiplies by Linear number i's substitute; `embed` makes the embedding module ready for tokens."""

    model: nn.Module
    current: CurrentPass
    cache: Cache
    embed: Callable[[Tensor], Tensor]
    linears: Mapping[int, Callable[[Any], Tensor]]
    device: Device
    # Which device runs which layers; None: there is one, or it runs all of them.
    stages: Stages | None = None

    def __call__(self, nodes: Nodes, hidden: Tensor | None = None) -> Tensor:
        """Logits [n, vocab] after each of `nodes`, whose ancestors must have been run before (or be among them). `hidden`
        [n, taps, hidden size] is filled with their hidden states at the installed taps.

        Where `nodes` lie on the device already, the host is asked for nothing."""
        return self._run(Level(self, nodes, hidden))

    def _run(self, level: Level) -> Tensor:
        with self.stages.walk() if self.stages is not None else nullcontext():
            return self._forward(level)

    def _forward(self, level: Level) -> Tensor:
        ids = self.embed(level.nodes.tokens)[None]
        return self._under_way(level, partial(self._logits, ids))

    def _logits(self, ids: Tensor, level: Level) -> Tensor:
        positions = level.nodes.positions[None]
        out = self.model(input_ids=ids, position_ids=positions, past_key_values=pass_cache(positions), use_cache=True)
        logits: Tensor = out.logits[0]
        return logits

    def _under_way(self, level: Level, work: Callable[[Level], T]) -> T:
        """What `work` makes of `level` while that is under way."""
        self.current.under_way = level
        try:
            return work(level)
        finally:
            self.current.under_way = None

    @torch.inference_mode()
    def fuse(self, vocabulary: int, context: int) -> FusedParts:
        """Let blocks and MLPs whose structure is as usual run in fewer steps, where that gives what the stock ones give. Texts have
        at most `context` tokens, of so large a vocabulary.

        Row 0 of the cache must be empty: levels of COMPARED nodes run there."""
        kernels = self.device.block_kernels()
        if kernels is None:
            return FusedParts()
        together = mixtures(self.model, self.linears, kernels)
        joiner = Joiner(self.linears, kernels)
        stepped = {} if self.stages is not None else channel_layers(self.model, joiner)
        fusing = Fusing(self._here(usual_blocks(self.model)), self._mlps(), joiner, together, stepped)
        if not fusing.blocks and not fusing.mlps and not together and not stepped:
            return FusedParts()
        # Some attentions depend on positions by more than their turns, and only past a certain one.
        text, tree = _compared(vocabulary)
        for nodes, further in ((text, 0), (tree, max(0, context - 1 - tree.last))):
            samples = BlockSamples(fusing.blocks, fusing.mlps, further), mixed_samples(together), channel_samples(stepped)
            with samples[0] as watched, samples[1] as mixed, samples[2] as layers:
                self._run(WatchedLevel(self, nodes, watched.specs))
            if kernels.suits(nodes):
                self._under_way(Level(self, nodes), partial(fusing.compare, watched, mixed, layers))
        return fusing.take_over(self.current, _level)

    def _here(self, blocks: dict[nn.Module, BlockModules]) -> dict[nn.Module, BlockModules]:
        """Those of `blocks` whose memory is the first device's: its kernels know no other."""
        if self.stages is None:
            return blocks
        there = {block: self.stages.device(parts.layer).where for block, parts in blocks.items()}
        return {block: parts for block, parts in blocks.items() if there[block] == self.device.where}

    def _mlps(self) -> dict[nn.Module, MlpModules]:
        """The gated MLPs that may run in fewer steps. Where there are several devices, nothing tells whose an MLP is."""
        return usual_mlps(self.model) if self.stages is None else {}


def _compared(vocabulary: int) -> tuple[Nodes, Nodes]:
    """Levels that fused blocks are compared in: a text, and nodes that all follow it, of which none is another's ancestor."""
    tokens = [token % vocabulary for token in range(COMPARED + 1)]
    text = Nodes.of(TokenTree.chain(tokens[:-1]), 0, 0)
    tree = TokenTree.of(tokens, [-1, *[0] * COMPARED])
    return text, Nodes.of(tree, 0, COMPARED - 1)[1:]


class LevelView(Protocol):
    """What a level runs in: the draft view, or a trained head with a cache of its own."""

    @property
    def linears(self) -> Mapping[int, Callable[[Any], Tensor]]:
        """What multiplies by streamed Linear number i."""

    @property
    def cache(self) -> Cache:
        """Where keys and values go."""

    @property
    def device(self) -> Device:
        """Where it runs, the first one."""

    @property
    def stages(self) -> Stages | None:
        """Which device runs which layers; None: one runs all of them."""


class Level:
    """One draft forward, a `Pass`: all its nodes, which lie on the view's device, side by side.

    The number of nodes and the width of their tails are all that a recorded level is fixed to."""

    def __init__(self, view: LevelView, nodes: Nodes, hidden: Tensor | None = None) -> None:
        self.count = len(nodes)
        # [n, taps, hidden size]: where hidden states go; None: nobody asked for them.
        self.hidden = hidden
        self.linears = view.linears
        self.cache = view.cache
        self.device = view.device
        # Levels that a device searches have tails, and none of their nodes is another's ancestor; nothing of them is asked for.
        level = view.device.own_memory and nodes.tail.shape[1] > 0
        self.tops = tops(nodes) if view.cache.recurrent and not level else []
        self.placed = Placed(view.cache, nodes, view.device, view.stages)
        self.nodes = nodes = self.placed.first
        self.attention = view.device.draft_attention(nodes)
        # By what `placed` holds of nodes for each device and each way to see them.
        self._attentions: dict[int, DraftAttention] = {id(nodes): self.attention}
        # The same where old tokens lie in a file: texts seem shorter there.
        spilled = view.cache.spilled
        self.short = nodes if spilled is None else spilled.local(nodes)
        self.short_attention = self.attention if self.short is nodes else view.device.draft_attention(self.short)
        self.place = place_of_one(nodes, view.device)

    @property
    def undivided(self) -> bool:
        """Do all layers see the same nodes, and does nobody look at what lies between them?"""
        return self.hidden is None and self.short is self.nodes and self.placed.stages is None

    @property
    def tokens(self) -> Tensor:
        return self.nodes.tokens

    @property
    def expert_kernels(self) -> ExpertKernels | None:
        return self.device.expert_kernels()

    def linear(self, index: int, x: Rows) -> Tensor:
        return self.linears[index](x)

    def write_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.cache.write(layer, self.placed.at(layer)[1], self.place, keys, values)

    def choose(self, layer: int, keys: Tensor, asked: IndexQuery | PooledQuery) -> Chosen:
        return self.placed.choose(layer, keys, asked)

    def history(self, layer: int) -> Tensor:
        return self.cache.histories[layer].before(self.nodes)

    def compress(self, layer: int, parts: Tensor, make: MakeEntry, *, of_index: bool) -> None:
        self.placed.entries.compress(layer, parts, make, of_index=of_index)

    def choose_entries(self, layer: int, asked: IndexQuery) -> None:
        self.placed.entries.choose(layer, asked)

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        state = self.cache.layer(layer, spec.window)
        spec = self.placed.entries.looked_at(layer, spec)
        if self.cache.spills(layer):
            return self.short_attention(query, state.keys, state.values, spec)
        device, there = self.placed.seen_in(layer, spec)
        if spec.chosen.nodes is not None:
            # on a processor what a draft attends by goes over all places, of which each node looks at few
            exact = partial(device.attend, nodes=there, spec=spec)
            found = exact if not device.own_memory else partial(device.draft_attention(there), spec=spec)
            return found(query, state.keys, state.values)
        if id(there) not in self._attentions:
            self._attentions[id(there)] = device.draft_attention(there)
        return self._attentions[id(there)](query, state.keys, state.values, spec)

    def nodes_in(self, layer: int) -> Nodes:
        """Its nodes as they lie in fast memory in `layer`."""
        return self.short if self.cache.spills(layer) else self.placed.at(layer)[1]

    def convolve(self, layer: int, x: Tensor, weight: Tensor, bias: Tensor | None, number: int = 0) -> Tensor:
        device, there = self.placed.at(layer)
        return device.convolve(x, weight, bias, self.cache.recurrent[layer].convolved(number), there)

    def recur(self, layer: int, step: RuleStep) -> Tensor:
        state = self.cache.advanced(layer, self.tops)
        device, there = self.placed.at(layer)
        return recur(device, step, state, there, together=not self.tops)

    def tap(self, number: int, states: Tensor) -> None:
        if self.hidden is not None:
            self.hidden[:, number] = states


class WatchedLevel(Level):
    """A level that tells by which specification each layer attends."""

    def __init__(self, view: Draft, nodes: Nodes, specs: dict[int, AttentionSpec]) -> None:
        super().__init__(view, nodes)
        self.specs = specs

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        self.specs[layer] = spec
        return super().attend(layer, query, spec)


def _level(under_way: Pass | None) -> Level | None:
    """The pass under way, if it is a level."""
    return under_way if isinstance(under_way, Level) else None
