"""Linears whose inputs come in groups, each with a matrix of its own, one below the other (DeepSeek-V4's output projection): the
groups of a node are rows that go to experts, of which each gets one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .experts import STACKS
from .lone_stacks import LONE, multiplied

# In a stock Linear: how many groups there are.
GROUPS = "n_groups"


def install_grouped_linears(model: nn.Module) -> None:
    """Let each Linear of the stock `model` whose inputs come in groups multiply these as rows that go to experts."""
    for module in model.modules():
        groups = getattr(module, GROUPS, None)
        if isinstance(module, nn.Linear) and isinstance(groups, int) and type(module).forward is not nn.Linear.forward:
            _install(module, groups)


def _install(module: Any, groups: int) -> None:
    weight = module.weight
    module.weight = nn.Parameter(weight.detach().view(groups, -1, weight.shape[1]), requires_grad=False)
    for name, value in {**LONE, STACKS: ("weight",), "output_size": module.weight.shape[1]}.items():
        object.__setattr__(module, name, value)
    object.__setattr__(module, "forward", partial(_by_groups, module, groups))


def _by_groups(module: Any, groups: int, x: Tensor) -> Tensor:
    """x [..., groups, K] -> [..., groups, N]"""
    rows = x.reshape(-1, groups, x.shape[-1])
    chosen = torch.arange(groups, device=x.device).expand(len(rows), -1)
    out = multiplied(module, rows, chosen).view(*x.shape[:-1], -1)
    return out if module.bias is None else out + module.bias.view(groups, -1)
