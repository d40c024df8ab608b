"""Experts of classes that transformers lets nobody replace, told from how they are built: `experts` computes them all the same.

Such a class keeps the matrices of all experts as the others do, and is called as they are. It may have matrices for more experts at
the first step than at the last: those further ones give back what they are given (LongCat's zero experts), so nothing is kept or
brought for them. Whether the class computes what is computed here, the proof tells (`proving`)."""

from __future__ import annotations

import re
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..stock.bare import STACKED
from .experts import BOTH, DOWN, mix, mixes

# What the forward of such a class is given.
GIVEN = ("hidden_states", "top_k_index", "top_k_weights")
# What `experts` asks of a module of experts.
_KIND = {
    "has_gate": True, "has_bias": False, "has_post_expert_norm": False, "is_transposed": False, "is_concatenated": True,
}  # fmt: skip


def install_plain_experts(model: nn.Module) -> None:
    """Let the experts of each layer of the stock `model` be computed by `experts`, where their class says nothing of it but is
    built as those that do."""
    for path, module in model.named_modules():
        if _is_plain(module):
            _install(model, path, module)


def _is_plain(module: nn.Module) -> bool:
    stacks = {name: p.dim() for name, p in module.named_parameters(recurse=False)}
    if mixes(module) or stacks != {BOTH: STACKED, DOWN: STACKED} or not hasattr(module, "act_fn"):
        return False
    return tuple(signature(module.forward).parameters) == GIVEN


def as_experts(module: Any) -> None:
    """Let `module`, which has both stacks and an activation, be one of experts as `experts` computes them."""
    for name, value in _KIND.items():
        setattr(module, name, value)
    if not hasattr(module, "_apply_gate"):
        object.__setattr__(module, "_apply_gate", partial(_gated, module))
    object.__setattr__(module, "forward", partial(mix, module))


def _install(model: Any, path: str, module: Any) -> None:
    both, count = module.gate_up_proj, len(module.down_proj)
    if (further := len(both) - count) > 0:
        module.gate_up_proj = nn.Parameter(both.detach()[:count], requires_grad=False)
        _leave_out(model, path, range(count, count + further))
        module.register_forward_pre_hook(partial(_sorted_out, count))
        module.register_forward_hook(partial(_with_zero_experts, count))
    as_experts(module)


def _gated(module: Any, both: Tensor) -> Tensor:
    """What the experts of `module` make of what its first matrices gave: as stock code does by default."""
    gate, up = both.chunk(2, dim=-1)
    gated: Tensor = module.act_fn(gate) * up
    return gated


def _sorted_out(count: int, _: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """What the experts of a layer are `given`, where those from number `count` on have no matrices: the number of all of them is
    one that no expert has, and what goes there is left out."""
    hidden, chosen, weights = given
    return hidden, chosen.clamp(max=count), weights


def _with_zero_experts(count: int, _: nn.Module, given: tuple[Any, ...], gave: Tensor) -> Tensor:
    """What experts `gave`, and what those do beside them that give back what they are given [n, H]."""
    hidden, chosen, weights = given
    kept = torch.where(chosen < count, 0.0, weights.float()).sum(-1, keepdim=True)
    total: Tensor = gave.float() + hidden.float() * kept
    return total.to(gave.dtype)


def _leave_out(model: Any, path: str, experts: range) -> None:
    """Let tensors of `experts` that the module at `path` has no use for be left aside, where a checkpoint has some: transformers
    writes such for its own unused ones."""
    known = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    pattern = rf"{re.escape(path)}\.({'|'.join(map(str, experts))})\."
    model._keys_to_ignore_on_load_unexpected = [*known, pattern]
