"""The delta rule whose state forgets by channel (KDA: Kimi Linear, Ling 3): what its layers keep, and the module that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kernels.recurrence import RuleStep
from ...recurrent import RecurrentShape
from .gated_delta import unit
from .mixer import Mixer


def channel_delta_shape(config: Any) -> RecurrentShape:
    """What a layer of the delta rule keeps whose decays belong to channels: as many heads of keys as of values, of one size."""
    heads, size = config.linear_num_heads, config.linear_head_dim
    return RecurrentShape(3 * heads * size, config.linear_conv_kernel_dim, heads, heads, size, size, by_channel=True)


class ChannelDelta(Mixer):
    """KDA (arXiv 2510.26692): the gated delta rule with a factor for each channel of a key, which a gate of its own computes."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        from transformers.activations import ACT2FN

        self.activation: Callable[[Tensor], Tensor] = ACT2FN[stock.activation]
        self.size = stock.head_dim

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        x = torch.cat([self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)], dim=-1)
        x = self.activation(self.convolve(x, self.conv1d))[0].float()
        query, key, value = (part.reshape(len(x), -1, self.size) for part in x.chunk(3, dim=-1))
        decay = torch.exp(self.forget_gate(hidden_states)[0].float())
        beta = self.b_proj(hidden_states).sigmoid()[0].float()
        out = self.recur(RuleStep(unit(query) * self.size**-0.5, unit(key), value, decay, beta)).to(hidden_states.dtype)
        gate = self._gate(hidden_states)
        result: Tensor = self.o_proj(self.o_norm(out, gate.reshape(out.shape)).reshape(gate.shape))
        return result

    def _gate(self, hidden_states: Tensor) -> Tensor:
        """The gate of what the rule gives: by two Linears with few numbers between them, or by one."""
        gate: Tensor = self.g_proj(hidden_states) if hasattr(self, "g_proj") else self.g_b_proj(self.g_a_proj(hidden_states))
        return gate
