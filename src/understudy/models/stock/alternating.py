"""Gates that are published row by row between what they gate (Inkling): transformers puts them apart when it loads a model.

Here rows stay as they are stored, and what comes of them is taken apart: a matrix of gates and one of what is gated become one
Linear, or one stack of experts, whose outputs alternate. Which those are, transformers' own table of changes tells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..mixtures.experts import BOTH, GATE, STACKS, UP, mixes, stacked

# The operations of transformers that put alternating rows apart: in one tensor, or in two.
_APART, _CHUNKED = ["Interleave"], ["Interleave", "Chunk"]
# Where a stock model says which parameters' rows alternate as they are stored, and under which name its class has each.
ALTERNATING = "understudy_alternating"
# Ends the names that such tensors have where only a config tells of them.
STORED = " as stored"


def as_stored(model: Any, name: str) -> str:
    """A name that parameter `name` of the stock `model` is found by, where it is the only tensor that it could be made of."""
    return name + STORED if name in getattr(model, ALTERNATING, {}) else name


def install_alternating(model: Any) -> None:
    """Let gated networks and experts of the stock `model` take weights whose rows alternate in a checkpoint as they are there."""
    changes = list(_changes(model))
    if not changes:
        return
    names: dict[str, str] = {}
    for path, module in list(model.named_modules()):
        if mixes(module):
            first = stacked(module)[0]
            if _matches(changes, _APART if first == BOTH else _CHUNKED, f"{path}.{first}"):
                _let_experts(module, first)
                names[f"{path}.{BOTH}"] = f"{path}.{first}"
        elif _is_gated(module) and _matches(changes, _CHUNKED, f"{path}.{GATE}.weight"):
            _let_network(module)
            names[f"{path}.{BOTH}.weight"] = f"{path}.{GATE}.weight"
    setattr(model, ALTERNATING, names)


def _changes(model: Any) -> Iterator[tuple[list[str], list[str]]]:
    """The operations of each change that puts alternating rows apart, and the patterns of what it makes."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    parts = getattr(model, "understudy_parts", None)
    for change in get_model_conversion_mapping(model) if parts is None else parts.changes:
        operations = [type(each).__name__ for each in getattr(change, "operations", None) or ()]
        if operations in (_APART, _CHUNKED):
            yield operations, list(change.target_patterns)


def _matches(changes: list[tuple[list[str], list[str]]], operations: list[str], name: str) -> bool:
    """Is the parameter `name` made by a change of these `operations`?"""
    return any(found == operations and any(re.search(each, name) for each in targets) for found, targets in changes)


def _is_gated(module: Any) -> bool:
    gate, up = (module._modules.get(name) for name in (GATE, UP))
    both = isinstance(gate, nn.Linear) and isinstance(up, nn.Linear) and hasattr(module, "act_fn") and hasattr(module, "down_proj")
    return both and gate.bias is None and up.bias is None and gate.weight.shape == up.weight.shape


def _let_experts(module: Any, first: str) -> None:
    if first != BOTH:
        count, rows, hidden = module._parameters[first].shape
        both = torch.empty(count, 2 * rows, hidden, dtype=module._parameters[first].dtype, device="meta")
        module.register_parameter(BOTH, nn.Parameter(both, requires_grad=False))
        for name in (GATE, UP):
            del module._parameters[name]
        setattr(module, STACKS, (BOTH, stacked(module)[-1]))
    object.__setattr__(module, "_apply_gate", partial(_gated, module))


def _let_network(module: Any) -> None:
    rows, hidden = module.gate_proj.weight.shape
    both = nn.Linear(hidden, 2 * rows, bias=False, device="meta", dtype=module.gate_proj.weight.dtype)
    module.register_module(BOTH, both)
    for name in (GATE, UP):
        del module._modules[name]
    object.__setattr__(module, "forward", partial(_network, module))


def _gated(module: Any, both: Tensor) -> Tensor:
    """What the gates in `both` let through of what stands beside them."""
    gated: Tensor = module.act_fn(both[..., ::2]) * both[..., 1::2]
    return gated


def _network(module: Any, hidden_states: Tensor) -> Tensor:
    out: Tensor = module.down_proj(_gated(module, module.gate_up_proj(hidden_states)))
    return out * module.global_scale if hasattr(module, "global_scale") else out
