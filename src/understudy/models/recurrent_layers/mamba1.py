"""Mamba (arXiv 2312.00752), the first one: what its layers keep, and the modules that run them (Jamba, Falcon Mamba)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.recurrence import RuleStep
from ...recurrent import RecurrentShape, RecurrentState
from .mixer import Mixer


def jamba_shape(config: Any) -> RecurrentShape:
    """What a layer of Mamba keeps, of a Jamba."""
    return _mamba1(config.mamba_expand * config.hidden_size, config.mamba_d_state, config.mamba_d_conv)


def mamba1_shape(config: Any) -> RecurrentShape:
    """What a layer of Mamba keeps, of a model that has no other layers."""
    return _mamba1(config.intermediate_size, config.state_size, config.conv_kernel)


def _mamba1(channels: int, size: int, taps: int) -> RecurrentShape:
    """Each channel of the convolution is a head of one number, and all share one key."""
    return RecurrentShape(channels, taps, 1, channels, size, 1, by_channel=True, rated=True)


class WithoutBias(nn.Linear):
    """A Linear that leaves its bias to others: steps are added up with it in float32."""

    @classmethod
    def of(cls, linear: nn.Linear) -> WithoutBias:
        """The same weight and bias."""
        made = copy.copy(linear)
        made.__class__ = cls
        assert isinstance(made, WithoutBias)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]."""
        return nn.functional.linear(x, self.weight)


class Mamba1(Mixer):
    """Mamba: a step of length dt forgets each number of a channel's state by exp(dt * A), and writes dt * x along B; C reads."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        from transformers.activations import ACT2FN

        self.activation: Callable[[Tensor], Tensor] = ACT2FN[stock.activation]
        self.sizes = [stock.time_step_rank, stock.ssm_state_size, stock.ssm_state_size]
        self.dt_proj = WithoutBias.of(stock.dt_proj)
        self.normed = hasattr(stock, "b_layernorm")

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, hidden size] -> the same."""
        x, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        x = self.activation(self.convolve(x, self.conv1d))
        time, key, query = torch.split(self.x_proj(x), self.sizes, dim=-1)
        if self.normed:
            time, key, query = self.dt_layernorm(time), self.b_layernorm(key), self.c_layernorm(query)
        dt = nn.functional.softplus(self.dt_proj(time)[0].float() + self.dt_proj.bias.float())
        x = x[0].float()
        query, key = (each[0].float()[:, None].contiguous() for each in (query, key))
        out = self.recur(RuleStep(query, key, (x * dt)[..., None], dt))[..., 0] + self.D.float() * x
        out = out[None] * nn.functional.silu(gate.float())
        result: Tensor = self.out_proj(out.to(hidden_states.dtype))
        return result


def give_rates(model: nn.Module, states: dict[int, RecurrentState]) -> None:
    """Tell the `states` of layers, by their numbers, the rates by which the layers of Mamba in `model` forget."""
    for module in model.modules():
        if isinstance(module, Mamba1) and not module.A_log.is_meta:
            states[module.layer_idx].rates = -module.A_log.detach().float().exp()
