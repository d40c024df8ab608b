"""Finds what of the draft view can run in fewer steps (`fused`), from levels in which the stock modules ran."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ...kernels.blocks import MixedExperts
from ..streamed import CurrentPass, Pass
from .block_samples import BlockSamples, MlpSample, Sample
from .block_structure import AttentionModules, BlockModules, LatentModules, MlpModules
from .fused import (
    FirstHalf,
    FurtherPart,
    FusedBlock,
    FusedMlp,
    LevelPass,
    chain_up,
    computes_alike,
    ends_alike,
    goes_on_alike,
    is_gated,
    take_over,
    take_over_mlp,
)
from .fused_channels import ChannelSamples, FusedChannels, take_over_channels
from .fused_delta import fused_delta
from .fused_experts import MixedSample, mixes_alike, take_over_experts
from .joiner import Joiner


class FusedParts(NamedTuple):
    """How much of a model runs in fewer steps: whole blocks, the attention of others, MLPs alone, and the experts of layers."""

    blocks: int = 0
    attentions: int = 0
    mlps: int = 0
    mixtures: int = 0
    # Layers that forget by channel.
    channels: int = 0


@dataclass
class Fusing:
    """What may be taken over. After a level was compared, only what gave the same in it."""

    blocks: Mapping[nn.Module, BlockModules]
    mlps: Mapping[nn.Module, MlpModules]
    joiner: Joiner
    # The experts of layers, in one call each.
    mixtures: dict[nn.Module, MixedExperts]
    # Layers that forget by channel, each in one way or more.
    channels: dict[nn.Module, list[FusedChannels]]

    def __post_init__(self) -> None:
        # None: no way to compute it gave what the stock module gave.
        self._attentions: dict[nn.Module, FirstHalf | None] = {}
        self._halves: dict[nn.Module, FusedMlp | None] = {}
        self._furthers: dict[nn.Module, FurtherPart | None] = {}
        self._alone: dict[nn.Module, FusedMlp | None] = {}
        self._handed_on = set(itertools.pairwise(self.blocks))

    def compare(
        self, watched: BlockSamples, mixed: Mapping[nn.Module, MixedSample], stepped: ChannelSamples, level: LevelPass
    ) -> None:
        """Compare with what stock modules gave in `level`, which must be under way."""
        self.mixtures = {
            module: ours for module, ours in self.mixtures.items() if module in mixed and mixes_alike(ours, mixed[module])
        }
        self._handed_on &= watched.handed_on
        for mixer, layer in stepped.items():
            self.channels[mixer] = [ours for ours in self.channels[mixer] if ours.alike(*layer, level)]
        for block, sample in watched.samples:
            self._halves[block] = self._half(block, sample, watched.mlp_samples)
            self._furthers[block] = self._further(block, sample)
            self._attentions[block] = self._attention(block, sample, level)
        # It takes time, which those need not that run as parts of their blocks.
        whole = {self.blocks[block].mlp for block, half in self._halves.items() if half and self._attentions[block]}
        for mlp, given in watched.mlp_samples.items():
            if mlp not in whole:
                ours = self._alone[mlp] if mlp in self._alone else self._mlp(mlp, given)
                self._alone[mlp] = ours if ours is not None and computes_alike(ours, given) else None

    def _attention(self, block: nn.Module, sample: Sample, level: LevelPass) -> FirstHalf | None:
        stock = self.blocks[block]
        known = self._attentions.get(block)
        if known is None:
            ways = () if block in self._attentions else self._ways(stock, sample)
            known = next((ours for ours in ways if ours.alike(sample, level)), None)
        elif not known.alike(sample, level):
            return None
        if stock.further is not None and self._furthers[block] is None:
            return None
        # where the second half is ours, that was compared
        whole = self._halves[block] is not None
        return known if known is not None and (whole or goes_on_alike(stock, sample)) else None

    def _ways(self, stock: BlockModules, sample: Sample) -> Iterator[FirstHalf]:
        """Ways in which the first half of a stock block may compute."""
        if isinstance(stock.attention, AttentionModules):
            yield from self.joiner.attention(stock.attention, stock, sample)
        elif isinstance(stock.attention, LatentModules):
            yield from self.joiner.latent(stock.attention, stock, sample)
        elif (ours := fused_delta(stock, sample, self.joiner)) is not None:
            yield ours

    def _half(self, block: nn.Module, sample: Sample, mlps: Mapping[nn.Module, MlpSample]) -> FusedMlp | None:
        stock = self.blocks[block]
        ours = self._halves.get(block)
        if block not in self._halves and stock.mlp in mlps and stock.experts is None:
            _, _, before, after = stock.norms
            ours = self._mlp(stock.mlp, mlps[stock.mlp], before, stock.times, after, stock.scale)
        return ours if ours is not None and computes_alike(ours, sample.second, True, stock.scale) else None

    def _further(self, block: nn.Module, sample: Sample) -> FurtherPart | None:
        stock = self.blocks[block].further
        ours = self._furthers.get(block)
        if block not in self._furthers and stock is not None:
            ours = self.joiner.further(stock) or stock
        return ours if ours is not None and stock is not None and ends_alike(ours, sample, stock.scale) else None

    def _mlp(self, mlp: nn.Module, sample: MlpSample, *around: Any) -> FusedMlp | None:
        """The stock `mlp` in fewer steps, with what is `around` it (see `Joiner.mlp`); None where it is no usual one."""
        parts = self.mlps[mlp]
        return self.joiner.mlp(parts, *around) if is_gated(parts, sample) else None

    def take_over(self, current: CurrentPass, level: Callable[[Pass | None], LevelPass | None]) -> FusedParts:
        """Let what is left run in the place of the stock modules, inside levels."""
        found = {
            block: FusedBlock(attention, self._halves[block], self._furthers[block], self.blocks[block])
            for block, attention in self._attentions.items()
            if attention is not None
        }
        chain_up(found, self._handed_on)
        for block, ours in found.items():
            take_over(block, ours, current, level)
        whole = [self.blocks[block].mlp for block, ours in found.items() if ours.mlp is not None]
        alone = {mlp: ours for mlp, ours in self._alone.items() if ours is not None and mlp not in whole}
        for mlp, half in alone.items():
            take_over_mlp(mlp, half, current, level)
        for module, experts in self.mixtures.items():
            take_over_experts(module, experts, current, level)
        layers = {mixer: ways[0] for mixer, ways in self.channels.items() if ways}
        for mixer, layer in layers.items():
            take_over_channels(mixer, layer, current, level)
        return FusedParts(len(whole), len(found) - len(whole), len(alone), len(self.mixtures), len(layers))
