"""Giving a stock model what does not stream: its norms, biases, buffers and small weights, whole and exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import StoreError
from ..weights.layout import ModelLayout
from .embedding import lookups
from .hashed_rows import HashedTable
from .kept import float32_names
from .stock.names import finder, sources
from .stock.stored_tensors import stored_buffers


def share(
    model: nn.Module, layout: ModelLayout, tensors: Mapping[str, Tensor], dtype: torch.dtype, directory: Path | None = None
) -> None:
    """Give every parameter but those that are looked up by token, and every buffer that the checkpoint holds, its tensor of
    `tensors`, in the type in which transformers holds it in a model that computes in `dtype`. Their names are kept in `directory`.

    Raises StoreError for a parameter that has none."""
    tables = (module for module in model.modules() if isinstance(module, HashedTable))
    looked_up = {id(module.weight) for module in (*lookups(model, layout), *tables)}
    in_float32 = float32_names(model, dtype)
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in looked_up:
            places.setdefault(id(parameter), []).append(name)
    buffers = list(stored_buffers(model))
    found = sources(model, [*(name for names in places.values() for name in names), *buffers], tensors.keys(), directory)
    for names in places.values():
        stored = next((found[name] for name in names if found[name]), ())
        kind = torch.float32 if any(map(in_float32, names)) else model.get_parameter(names[0]).dtype
        whole = torch.cat([tensors[piece] for piece in stored]) if len(stored) > 1 else _whole(model, names[0], stored, tensors)
        parameter = nn.Parameter(whole.to(kind), requires_grad=False)
        for name in names:
            _put(model, name, parameter)
    for name in buffers:
        if len(found[name]) == 1:
            kind = torch.float32 if in_float32(name) else model.get_buffer(name).dtype
            _put(model, name, tensors[found[name][0]].to(kind))


def _whole(model: nn.Module, name: str, stored: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensor of `tensors` that is `stored` as parameter `name`, or what transformers makes of others where none is.

    Raises StoreError where it makes it of nothing."""
    if stored:
        return tensors[stored[0]]
    find = finder(model, tensors)
    if not find.changed(name):
        raise StoreError(f"There is no tensor {name!r}, which {type(model).__name__} needs.")
    return find.made(name, tensors, model.config)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, tensor)
