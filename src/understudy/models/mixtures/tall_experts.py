"""Experts of DBRX: their matrices stand one below the other in three tall weights, of gates, of what is gated, and of results.

They become stacks as other mixtures have them (`experts`). A checkpoint stays as it is: rows of both first weights come in
turn, and the last is stored transposed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .experts import BOTH, DOWN, TURNED
from .plain_experts import as_experts

# The weights [experts x inner, hidden] of the module within one of experts, in this order.
TALL = ("w1", "v1", "w2")
# Where a stock model says which of its class's weights a stack of ours is made of, by its name.
JOINED = "understudy_joined"


def install_tall_experts(model: Any) -> None:
    """Let the experts of each layer of the stock `model` be computed by `experts`, where they are tall weights."""
    joined: dict[str, tuple[str, ...]] = {}
    for path, module in model.named_modules():
        inner: Any = next(iter(module.children()), None)
        if hasattr(module, "num_experts") and inner is not None and _names_of(inner) == TALL:
            _install(module, inner, int(module.num_experts))
            name = next(name for name, child in module.named_children() if child is inner)
            gates, gated, results = (f"{path}.{name}.{weight}" for weight in TALL)
            joined |= {f"{path}.{BOTH}": (gates, gated), f"{path}.{DOWN}": (results,)}
    if joined:
        setattr(model, JOINED, joined)


def _names_of(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_parameters(recurse=False))


def _install(module: Any, inner: Any, experts: int) -> None:
    rows, hidden = inner.w1.shape
    for name, each in ((BOTH, 2 * rows // experts), (DOWN, rows // experts)):
        stack = torch.empty(experts, each, hidden, dtype=inner.w1.dtype, device="meta")
        module.register_parameter(name, nn.Parameter(stack, requires_grad=False))
    for name in TALL:
        inner._parameters[name] = None
    module.act_fn = inner.activation_fn
    setattr(module, TURNED, (DOWN,))
    as_experts(module)
    module.register_forward_pre_hook(_flat)
    module.register_forward_hook(_one_text)


def _flat(_: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What the experts are `given`, the rows of a text as rows alone."""
    hidden, chosen, weights = given
    return hidden.reshape(-1, hidden.shape[-1]), chosen, weights


def _one_text(_: nn.Module, given: tuple[Any, ...], gave: Tensor) -> Tensor:
    """What the experts `gave`, as a text again."""
    return gave[None]
