"""The gated delta rule (Qwen3.5, Qwen3-Next, OLMo-hybrid): what its layers keep, and the modules that run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.recurrence import RuleStep
from ...recurrent import RecurrentShape
from .mixer import Mixer


def gated_delta_shape(config: Any) -> RecurrentShape:
    """What a layer of the gated delta rule keeps."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    return RecurrentShape(
        channels=2 * keys + values,
        taps=config.linear_conv_kernel_dim,
        key_heads=config.linear_num_key_heads,
        value_heads=config.linear_num_value_heads,
        key_size=config.linear_key_head_dim,
        value_size=config.linear_value_head_dim,
    )


class GatedDelta(Mixer):
    """The gated delta rule (arXiv 2412.06464): a step forgets by a learned factor, then writes the share beta of the delta."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        from transformers.activations import ACT2FN

        self.activation: Callable[[Tensor], Tensor] = ACT2FN[stock.activation]
        self.key_heads, self.key_size = stock.num_k_heads, stock.head_k_dim
        self.value_heads, self.value_size = stock.num_v_heads, stock.head_v_dim

    def mix(self, x: Tensor, a: Tensor, beta: Tensor) -> Tensor:
        """x [1, n, channels]: queries, keys and values before the convolution; a, beta [1, n, value heads] -> [n, value heads,
        value size] of x's dtype."""
        x = self.activation(self.convolve(x, self.conv1d))[0].float()
        keys = self.key_heads * self.key_size
        query, key, value = torch.split(x, [keys, keys, x.shape[-1] - 2 * keys], dim=-1)
        query = unit(query.reshape(-1, self.key_heads, self.key_size)) * self.key_size**-0.5
        key = unit(key.reshape(-1, self.key_heads, self.key_size))
        value = value.reshape(-1, self.value_heads, self.value_size)
        decay = torch.exp(-self.A_log.float().exp() * nn.functional.softplus(a[0].float() + self.dt_bias))
        return self.recur(RuleStep(query, key, value, decay, beta[0].float()))


class Qwen35GatedDelta(GatedDelta):
    """The gated delta rule with one projection for queries, keys and values."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        x = self.in_proj_qkv(hidden_states)
        z = self.in_proj_z(hidden_states)
        b = self.in_proj_b(hidden_states)
        a = self.in_proj_a(hidden_states)
        out = self.mix(x, a, b.sigmoid()).to(x.dtype)
        out = self.norm(out.reshape(-1, self.value_size), z.reshape(-1, self.value_size))
        result: Tensor = self.out_proj(out.reshape(z.shape))
        return result


class Qwen3NextGatedDelta(GatedDelta):
    """The gated delta rule with two projections, of which each gives all that belongs to one head of keys side by side."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        each = self.value_heads // self.key_heads
        wide = each * self.value_size
        joined = self.in_proj_qkvz(hidden_states).unflatten(-1, (self.key_heads, -1))
        query, key, value, z = torch.split(joined, [self.key_size, self.key_size, wide, wide], dim=-1)
        b, a = torch.split(self.in_proj_ba(hidden_states).unflatten(-1, (self.key_heads, -1)), [each, each], dim=-1)
        x = torch.cat([part.flatten(-2) for part in (query, key, value)], dim=-1)
        out = self.mix(x, a.flatten(-2), b.flatten(-2).sigmoid()).to(x.dtype)
        out = self.norm(out.reshape(-1, self.value_size), z.reshape(-1, self.value_size))
        result: Tensor = self.out_proj(out.reshape(*hidden_states.shape[:-1], -1))
        return result


class OlmoGatedDelta(GatedDelta):
    """The gated delta rule with projections of their own; beta may reach 2, so that a step can turn a state's sign."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        self.widest_beta = 2.0 if stock.allow_neg_eigval else 1.0

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        x = torch.cat([self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)], dim=-1)
        beta = self.b_proj(hidden_states).sigmoid() * self.widest_beta
        out = self.mix(x, self.a_proj(hidden_states), beta).to(x.dtype)
        gate = self.g_proj(hidden_states)
        out = self.o_norm(out.reshape(-1, self.value_size), gate.reshape(-1, self.value_size))
        result: Tensor = self.o_proj(out.reshape(gate.shape))
        return result


def unit(x: Tensor) -> Tensor:
    """x [..., d] float32 with length one."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
