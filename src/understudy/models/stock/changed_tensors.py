"""Small weights that transformers makes of a checkpoint's tensors by more than other names: turned, or cut in parts.

They stay in a Store as the checkpoint has them, and its own operations make them when a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError
from .hf import refused
from .names import Finder


def changed_shapes(find: Finder, name: str, model: Any, tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that parameter `name` of the stock `model` is made of by more than other names, with their shapes; empty where
    it is of none, or of those that are its rows.

    Raises CheckpointError where they do not make a tensor of its shape."""
    if find.sources(name) or not (changed := find.changed(name)):
        return {}
    shapes: dict[str, tuple[int, ...]] = {each: tuple(tensors[each].shape) for each in changed}
    parameter: nn.Parameter = model.get_parameter(name)
    what = f"The checkpoint has no tensor {name!r}: it would be made of {find.conversion(name)}"
    with refused(what, {}, "It is not supported yet."), torch.device("meta"):
        made = find.made(name, {each: torch.empty(shape) for each, shape in shapes.items()}, model.config)
    if made.shape != parameter.shape:
        raise CheckpointError(f"{what}, which gives {list(made.shape)}, where the config asks for {list(parameter.shape)}.")
    return shapes
