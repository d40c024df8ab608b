"""Clover-2 (arXiv 2408.00264): Clover with an attention decoder before the decoder layers too, and projections in the place of
residual blocks. As its authors' code has it, which is more exact than the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import DraftHead, HeadConfig, Places, TargetWeights
from .clover import NOISE, AttentionDecoder, near_identity
from .layers import HeadLayers, rms_norm


class Clover2(DraftHead):
    """An attention decoder and decoder layers for each accepted token, whose keys and values are kept; then for each token of a
    draft an attention decoder and a projection alone, so that nodes of a tree keep nothing.

    A node's state is [what the attention decoder gives; what the projection gives of it], the second of which are the features:

        s_1 = norm(layers(AD_1(hidden state, embedding)))    o_1 = head_norm(W_1 s_1)
        s_i = AD_2(s_i-1, embedding)                         o_i = head_norm(W_2 [s_i; embedding])"""

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        size = config.target.hidden_size
        self.first_decoder = AttentionDecoder(config)
        self.layers = HeadLayers.of(config, self.current)
        self.norm = rms_norm(config)
        self.first_projection = nn.Linear(size, size)
        self.decoder = AttentionDecoder(config)
        self.projection = nn.Linear(2 * size, size)
        self.head_norm = rms_norm(config)

    @property
    def state_size(self) -> int:
        return 2 * self.config.target.hidden_size

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        mixed = self.first_decoder(hidden[:, :, 0], embedded)
        own = self.norm(self.layers(mixed, places))
        return torch.cat([own, self.head_norm(self.first_projection(own))], -1)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        own = self.decoder(states.chunk(2, -1)[0], embedded)
        return torch.cat([own, self.head_norm(self.projection(torch.cat([own, embedded], -1)))], -1)

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states.chunk(2, -1)[1]

    def start(self, target: TargetWeights) -> None:
        """Layers are copies of the target's last one, norms of its final one; projections give the state, but for noise."""
        super().start(target)
        for layer in self.layers:
            target.copy_layer(layer)
        for norm in (self.norm, self.head_norm):
            target.copy_norm(norm)
        for decoder in (self.first_decoder, self.decoder):
            decoder.start(NOISE)
        for projection in (self.first_projection, self.projection):
            near_identity(projection)
