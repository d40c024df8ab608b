"""Recurrent layers: what each kind keeps, and the modules that take the stock ones' places.

A mixer is built on the stock module's own Linears, norms and parameters, under their names. It hands the convolution and the rule
to the pass under way, in one form for one token and for many, where stock code has two that sum in different orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.recurrence import RuleStep
from ..recurrent import RecurrentShape
from .wrapper import text_config


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


@dataclass(frozen=True)
class RecurrentKind:
    """A kind of recurrent layers, as a config names it."""

    # a value that a config with such layers has
    told_by: str
    # what a layer keeps, read off the config
    shape: Callable[[Any], RecurrentShape]
    # does a layer have attention too?
    attends: bool = False


# By a layer's entry in the config's `layer_types`.
KINDS: dict[str, RecurrentKind] = {"linear_attention": RecurrentKind("linear_num_value_heads", gated_delta_shape)}


def recurrent_kinds(values: Mapping[str, Any]) -> list[RecurrentKind | None]:
    """For each layer of a config with `values` its kind, where it is a recurrent one that is known; empty where all are alike."""
    kinds = [KINDS.get(str(each)) for each in values.get("layer_types") or []]
    return [kind if kind is not None and values.get(kind.told_by) else None for kind in kinds]


def recurs(config: Any) -> bool:
    """Has the model of a transformers config recurrent layers of a known kind?"""
    return any(recurrent_kinds(vars(config)))


class Mixer(nn.Module):
    """The recurrent part of one layer, with the submodules and parameters of the `stock` module that it replaces."""

    # CurrentPass of the model, set when it is paired with a Store
    understudy: Any = None

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.layer_idx = int(stock.layer_idx)
        for name, child in stock.named_children():
            self.add_module(name, child)
        for name, parameter in stock.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A submodule or parameter of the stock module, under its name there."""

    def convolve(self, x: Tensor, convolution: Any) -> Tensor:
        """The causal convolution of x [1, n, channels] along each node's path."""
        if x.is_meta:
            return x
        out: Tensor = self.understudy.under_way.convolve(self.layer_idx, x[0], convolution.weight[:, 0], convolution.bias)
        return out[None]

    def recur(self, step: RuleStep) -> Tensor:
        """What the rule gives after each node: [n, value heads, value size] float32."""
        if step.value.is_meta:
            return step.value
        out: Tensor = self.understudy.under_way.recur(self.layer_idx, step)
        return out


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
        query = _unit(query.reshape(-1, self.key_heads, self.key_size)) * self.key_size**-0.5
        key = _unit(key.reshape(-1, self.key_heads, self.key_size))
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


# Class of the stock module -> what takes its place.
MIXERS: Mapping[str, type[Mixer]] = {
    "Qwen3_5GatedDeltaNet": Qwen35GatedDelta,
    "OlmoHybridGatedDeltaNet": OlmoGatedDelta,
}


def install_mixers(model: nn.Module) -> None:
    """Put a mixer in the place of the recurrent part of each layer of a stock model. CheckpointError for one that is not known."""
    found = {}
    for path, module in list(model.named_modules()):
        mixer = MIXERS.get(type(module).__name__)
        if mixer is not None:
            parent, _, name = path.rpartition(".")
            mine = mixer(module)
            found[mine.layer_idx] = mine
            setattr(model.get_submodule(parent), name, mine)
    for index, kind in enumerate(recurrent_kinds(vars(text_config(model.config)))):
        if kind is not None and index not in found:
            raise CheckpointError(f"Layer {index} of {type(model).__name__} is recurrent in a way that is not supported yet.")


def _unit(x: Tensor) -> Tensor:
    """x [..., d] float32 with length one."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
