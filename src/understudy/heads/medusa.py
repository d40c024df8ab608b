"""Medusa (arXiv 2401.10774): heads that each guess one token further ahead, all from the same hidden state of the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import DraftHead, HeadConfig, Places, Score, TargetWeights


class ResidualBlock(nn.Module):
    """x + SiLU(W x + b), which is x as long as W and b are zero."""

    def __init__(self, size: int):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.silu(self.linear(x))

    @torch.no_grad()
    def start(self) -> None:
        """Begin as the identity."""
        self.linear.weight.zero_()
        self.linear.bias.zero_()


class Medusa(DraftHead):
    """Head number d guesses the token after a node at depth d. A node's state is that of the last accepted token, which is the
    target's hidden state at the token before it, whatever the tokens between are.

    Options: `blocks`, residual blocks of each head (1); `own_outputs`, whether each head has an output head of its own, as
    published Medusas have, or all use the target's (False)."""

    def __init__(self, config: HeadConfig):
        super().__init__(config)
        size = config.target.hidden_size
        blocks = config.options.get("blocks", 1)
        self.heads = nn.ModuleList(nn.Sequential(*(ResidualBlock(size) for _ in range(blocks))) for _ in range(config.heads))
        self.outputs: nn.ModuleList | None = None
        if config.options.get("own_outputs"):
            self.output = None
            says = config.draft_vocab_size or config.target.vocab_size
            self.outputs = nn.ModuleList(nn.Linear(size, says, bias=False) for _ in range(config.heads))

    @property
    def needs_target_output(self) -> bool:
        return super().needs_target_output and self.outputs is None

    def begin(self, hidden: Tensor, embedded: Tensor, places: Places) -> Tensor:
        return hidden[:, :, 0]

    def follow(self, states: Tensor, embedded: Tensor, depth: int, places: Places) -> Tensor:
        return states

    def features(self, states: Tensor, depth: int) -> Tensor:
        features: Tensor = self.heads[depth](states)
        return features

    def start(self, target: TargetWeights) -> None:
        """Each head says what the target does."""
        super().start(target)
        blocks: Any = self.heads
        for block in (block for head in blocks for block in head):
            block.start()
        for output in self.outputs or ():
            target.copy_output(output, self.token_map)

    def scores(self, states: Tensor, depth: int, score: Score) -> Tensor:
        if self.outputs is None:
            return super().scores(states, depth, score)
        logits: Tensor = self.outputs[depth](self.features(states, depth))
        return logits
