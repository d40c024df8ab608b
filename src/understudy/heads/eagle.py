"""EAGLE (arXiv 2401.15077, 2406.16858): the next hidden state of the target is guessed from the last one and the token that was
chosen, by decoder layers. Scylla (arXiv 2505.07858) makes it deeper, and puts a norm at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import DraftHead, HeadConfig, Places, TargetWeights
from .layers import HeadLayers, rms_norm


class Eagle(DraftHead):
    """concat(embedding, hidden state) -> Linear -> decoder layers -> the target's output head. A node's state is the feature made
    for it, which takes the place of the target's hidden state below it.

    Options: `bias` of the Linear (True); `first_norm`, whether the first layer norms its input, which published EAGLEs do not
    (False); `last_norm`, an RMSNorm after the last layer, as in Scylla (False)."""

    attends_in_tree = True

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        size, options = config.target.hidden_size, config.options
        self.fc = nn.Linear(2 * size, size, bias=options.get("bias", True))
        self.layers = HeadLayers.of(config, self.current)
        if not options.get("first_norm"):
            first: Any = self.layers[0]
            first.input_layernorm = nn.Identity()
        self.norm = rms_norm(config) if options.get("last_norm") else nn.Identity()

    def start(self, target: TargetWeights) -> None:
        """Layers after the first begin by adding nothing, so a deep head begins as a shallow one and learns as soon."""
        super().start(target)
        self.layers.add_nothing(1)

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        return self._feature(hidden[:, :, 0], embedded, places)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        return self._feature(states, embedded, places)

    def features(self, states: Tensor, depth: int) -> Tensor:
        return states

    def _feature(self, before: Tensor, embedded: Tensor, places: Places) -> Tensor:
        mixed = self.fc(torch.cat([embedded, before], -1))
        feature: Tensor = self.norm(self.layers(mixed, places))
        return feature
