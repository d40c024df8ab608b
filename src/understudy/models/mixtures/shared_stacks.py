"""Shared experts whose matrices are stacks, as those of experts that are chosen are (Inkling): every token goes to all of them, and
the router says how much each counts. They are computed as other experts are (`experts`)."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..stock.bare import STACKED
from .experts import DOWN, GATE, STACKS, UP, mix, mixes
from .plain_experts import as_experts

# What the forward of such a class is given.
GIVEN = ("hidden_states", "gammas")


def install_shared_stacks(model: nn.Module) -> None:
    """Let shared experts in stacks of the stock `model` be computed by `experts`."""
    for module in model.modules():
        if _is_shared(module):
            as_experts(module)
            setattr(module, STACKS, (GATE, UP, DOWN))
            object.__setattr__(module, "forward", partial(_to_all, module))


def _is_shared(module: nn.Module) -> bool:
    stacks = {name: p.dim() for name, p in module.named_parameters(recurse=False)}
    if mixes(module) or stacks != dict.fromkeys((GATE, UP, DOWN), STACKED) or not hasattr(module, "act_fn"):
        return False
    return tuple(signature(module.forward).parameters) == GIVEN


def _to_all(module: Any, hidden_states: Tensor, gammas: Tensor) -> Tensor:
    """What all experts make of hidden_states [1, n, H], by their weights gammas [n, experts]: the same."""
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    weights = gammas.reshape(len(flat), -1)
    every = torch.arange(weights.shape[1], device=flat.device).expand(len(flat), -1)
    out: Tensor = mix(module, flat, every, weights)
    return out.view(hidden_states.shape)
