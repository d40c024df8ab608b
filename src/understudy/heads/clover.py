"""Clover (arXiv 2405.00263): Medusa's heads, each of which also reads the token that the head before it guessed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import DraftHead, HeadConfig, Places, TargetWeights
from .layers import HeadLayers, llama_config, rms_norm
from .medusa import ResidualBlock

# Size of the noise that is added to a weight which begins as the identity or as zero.
NOISE = 0.01


class AttentionDecoder(nn.Module):
    """Clover's attention decoder: x + the values of an embedding, each head of them weighed by the cosine of its query, which is
    made of x, and its key. It attends to one token alone, over which a softmax would be 1 whatever the query.

    heads: parts of a value, which divide `size`. Raises ValueError where they do not."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        size = config.target.hidden_size
        llama = llama_config(config)
        self.heads, self.epsilon = llama.num_attention_heads, llama.rms_norm_eps
        if size % self.heads:
            raise ValueError(f"{self.heads} attention heads do not divide hidden states of {size} numbers")
        self.norm = rms_norm(config)
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """x, embedded [b, n, hidden size] -> [b, n, hidden size]."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)) for part in (self.query(self.norm(x)), self.key(embedded), self.value(embedded))
        )
        gate = nn.functional.cosine_similarity(query, key, dim=-1, eps=self.epsilon)
        decoded: Tensor = x + (gate[..., None] * value).flatten(-2)
        return decoded

    @torch.no_grad()
    def start(self, noise: float) -> None:
        """Queries and keys begin as the identity with noise, values as `noise`, which may be 0."""
        for linear in (self.query, self.key):
            near_identity(linear)
        self.value.weight.uniform_(0, noise)
        self.value.bias.zero_()


@torch.no_grad()
def near_identity(linear: nn.Linear) -> None:
    """Make `linear` give the first of its inputs as they are, but for noise."""
    linear.weight.uniform_(0, NOISE)
    linear.weight.diagonal().add_(1)
    linear.bias.zero_()


class Clover(DraftHead):
    """One decoder layer after the target's last one (the augmenting block), once for each accepted token, then an attention decoder
    for each token of the draft and a residual block for each head.

    A node's state is what its attention decoder gives: h_i = AD(h_i-1, embedding of the node's token), where h_0 comes from the
    block. Embeddings are scaled to length 1."""

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        self.layers = HeadLayers.of(config, self.current)
        self.norm = rms_norm(config)
        self.decoder = AttentionDecoder(config)
        self.heads = nn.ModuleList(ResidualBlock(config.target.hidden_size) for _ in range(config.heads))

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        return self._decoded(self.norm(self.layers(hidden[:, :, 0], places)), embedded)

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        return self._decoded(states, embedded)

    def features(self, states: Tensor, depth: int) -> Tensor:
        features: Tensor = self.heads[depth](states)
        return features

    def start(self, target: TargetWeights) -> None:
        """The block is the target's last layer, residual blocks give what they get, and the attention decoder adds nothing."""
        super().start(target)
        for layer in self.layers:
            target.copy_layer(layer)
        target.copy_norm(self.norm)
        self.decoder.start(0.0)
        heads: Any = self.heads
        for head in heads:
            head.start()

    def _decoded(self, x: Tensor, embedded: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(x, nn.functional.normalize(embedded, dim=-1))
        return decoded
