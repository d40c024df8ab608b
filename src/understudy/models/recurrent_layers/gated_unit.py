"""The real-gated linear recurrent unit (RG-LRU; RecurrentGemma, arXiv 2402.19427): each channel has a state of one number, which it
forgets by a gate, and to which it adds what another gate lets through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.recurrence import RuleStep
from ...recurrent import RecurrentShape
from ..kept import HELD
from .mixer import Mixer, OfHeads, of_heads

# The speed at which a channel forgets at most.
FASTEST = 8.0
# The weights of the gates [heads, inputs, outputs], in the stock module within the block.
GATES = ("input_gate_weight", "recurrent_gate_weight")


def gated_unit_shape(config: Any) -> RecurrentShape:
    """What a layer keeps: the inputs of its convolution, and a head of one number for each channel."""
    return RecurrentShape(config.lru_width, config.conv1d_width, 1, config.lru_width, 1, 1)


class GatedUnit(Mixer):
    """A recurrent block: a convolution and the unit in one branch, which the other one scales."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        for name in GATES:
            setattr(getattr(self.rg_lru, name), HELD, True)
        # The weights of gates that are laid out, and what multiplies by each.
        self._laid_out: list[tuple[Tensor, OfHeads]] = []

    def forward(self, input_states: Tensor, position_ids: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """input_states: [1, n, hidden size] -> the same, and no weights."""
        scale = self.act_fn(self.linear_y(input_states))
        x = self.convolve(self.linear_x(input_states), self.conv_1d)
        unit = self.rg_lru
        biases = unit.input_gate_bias, unit.recurrent_gate_bias
        opened, forgets = (torch.sigmoid(gate + bias.flatten().float()) for gate, bias in zip(self._gates(x), biases, strict=True))
        slow = -FASTEST * forgets * nn.functional.softplus(unit.recurrent_param.float())
        # the first token of a text finds no state
        whole = torch.where(position_ids[0, :, None] == 0, 1.0, torch.sqrt(1 - torch.exp(2 * slow)))
        one = torch.ones(len(opened), 1, 1, device=x.device)
        given = (x[0].float() * opened * whole)[..., None]
        out = self.recur(RuleStep(one, one, given, torch.exp(slow)))
        result: Tensor = self.linear_out(out[..., 0].to(x.dtype)[None] * scale)
        return result, None

    def _gates(self, x: Tensor) -> list[Tensor]:
        """x [1, n, channels] by the weights of both gates: [n, channels] float32 each."""
        if x.is_meta:
            return [x[0].float()] * len(GATES)
        weights = [getattr(self.rg_lru, name) for name in GATES]
        if [weight is own for weight, (own, _) in zip(weights, self._laid_out, strict=False)] != [True] * len(GATES):
            self._laid_out = [(weight, of_heads(weight.detach().transpose(1, 2))) for weight in weights]
        rows = x[0].view(x.shape[1], len(weights[0]), -1)
        return [product(rows).flatten(1).float() for _, product in self._laid_out]
