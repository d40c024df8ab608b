"""Mamba-2 (arXiv 2405.21060) and the short convolution of LFM2: what their layers keep, and the modules that run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.recurrence import RuleStep
from ...recurrent import RecurrentShape
from .mixer import Mixer


def short_convolution_shape(config: Any) -> RecurrentShape:
    """What a layer with a short convolution alone keeps."""
    return RecurrentShape(config.hidden_size, config.conv_L_cache)


def mamba2_shape(config: Any) -> RecurrentShape:
    """What a layer of Mamba-2 keeps."""
    heads = (config.mamba_n_groups, config.mamba_n_heads)
    return _mamba2(heads, (config.mamba_d_state, config.mamba_d_head), config.mamba_d_conv)


def nemotron_shape(config: Any) -> RecurrentShape:
    """What a layer of Mamba-2 keeps, of a Nemotron-H, whose config has other names for the same."""
    heads = (config.n_groups, config.mamba_num_heads)
    return _mamba2(heads, (config.ssm_state_size, config.mamba_head_dim), config.conv_kernel)


def zamba_shape(config: Any) -> RecurrentShape:
    """What a layer of Mamba-2 keeps, of a Zamba2, which has further names."""
    heads = (config.mamba_ngroups, config.n_mamba_heads)
    return _mamba2(heads, (config.mamba_d_state, config.mamba_headdim), config.mamba_d_conv)


def mamba2_alone_shape(config: Any) -> RecurrentShape:
    """What a layer of Mamba-2 keeps, of a model that has no other layers."""
    return _mamba2((config.n_groups, config.num_heads), (config.state_size, config.head_dim), config.conv_kernel)


def _mamba2(heads: tuple[int, int], sizes: tuple[int, int], taps: int) -> RecurrentShape:
    """heads: groups, and heads that share them; sizes: numbers of a group's key, and of a head."""
    channels = heads[1] * sizes[1] + 2 * heads[0] * sizes[0]
    return RecurrentShape(channels, taps, *heads, *sizes)


class ShortConvolution(Mixer):
    """A convolution over a few tokens between two gates."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        before, after, x = self.in_proj(hidden_states).chunk(3, dim=-1)
        result: Tensor = self.out_proj(after * self.convolve(before * x, self.conv))
        return result


class Mamba2(Mixer):
    """Mamba-2: a step of length dt forgets by exp(dt * A) and writes dt * x along B; C reads.

    dt is computed in float32 and kept within its limits for one token as for many, as stock code does for many."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        from transformers.activations import ACT2FN

        self.activation: Callable[[Tensor], Tensor] = ACT2FN[stock.activation]
        self.heads, self.size = stock.num_heads, stock.head_dim
        self.groups, self.state = stock.n_groups, stock.ssm_state_size
        self.shortest, self.longest = stock.time_step_limit

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        out = self.mix(self.in_proj(hidden_states))
        result: Tensor = self.out_proj(out.to(hidden_states.dtype))
        return result

    def mix(self, projected: Tensor) -> Tensor:
        """projected [1, n, gate, channels and heads] -> [1, n, heads * size] float32."""
        inner, keys = self.heads * self.size, self.groups * self.state
        gate, x, dt = torch.split(projected, [inner, inner + 2 * keys, self.heads], dim=-1)
        x = self.activation(self.convolve(x, self.conv1d))[0].float()
        x, key, query = (part.contiguous() for part in torch.split(x, [inner, keys, keys], dim=-1))
        x = x.view(-1, self.heads, self.size)
        dt = nn.functional.softplus(dt[0].float() + self.dt_bias.float()).clamp(self.shortest, self.longest)
        decay = torch.exp(-self.A_log.float().exp() * dt)
        key, query = (each.view(-1, self.groups, self.state) for each in (key, query))
        out = self.recur(RuleStep(query, key, x * dt[..., None], decay)) + self.D.float()[:, None] * x
        return self.gated(out.reshape(gate.shape), gate)

    def gated(self, out: Tensor, gate: Tensor) -> Tensor:
        """out [1, n, inner] float32, normed and gated by `gate` of the same shape."""
        result: Tensor = self.norm(out, gate)
        return result


class FalconMamba2(Mamba2):
    """Falcon-H1's: with multipliers, and a norm that may be left out."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        self.multiplier = stock.ssm_in_multiplier
        self.normed = stock.mamba_rms_norm

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        out = self.mix(self.in_proj(hidden_states * self.multiplier) * self.mup_vector)
        result: Tensor = self.out_proj(out.to(hidden_states.dtype))
        return result

    def gated(self, out: Tensor, gate: Tensor) -> Tensor:
        return super().gated(out, gate) if self.normed else out * nn.functional.silu(gate)
