"""Linears that some classes of transformers keep transposed, as [in, out], and call Conv1D: they become Linears as all others are.

The checkpoint stays as it is: rows of such a weight are columns of its tensor, and `export` writes it back in its own order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class TurnedLinear(nn.Linear):
    """A Linear whose weight [out, in] the checkpoint holds as [in, out]."""


@contextmanager
def on_meta() -> Iterator[None]:
    """Inside, modules that keep their weight transposed are built without memory for it, and nothing is drawn for it."""
    kind = _kind()
    original = kind.__init__

    def init(self: nn.Module, *args: Any, **options: Any) -> None:
        with torch.device("meta"):
            original(self, *args, **options)
        self._is_hf_initialized = True  # type: ignore[assignment]

    kind.__init__ = init
    try:
        yield
    finally:
        kind.__init__ = original


def turn(model: nn.Module) -> None:
    """Put a Linear without values in the place of each module of `model` that keeps its weight transposed."""
    kind = _kind()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is kind:
                weight: Any = child.weight
                inputs, outputs = weight.shape
                setattr(module, name, TurnedLinear(inputs, outputs, device="meta", dtype=weight.dtype))


def is_turned(model: nn.Module, path: str) -> bool:
    """Does a checkpoint of `model` hold the weight of its module `path` transposed?"""
    return isinstance(model.get_submodule(path), TurnedLinear)


def _kind() -> Any:
    from transformers.pytorch_utils import Conv1D

    return Conv1D
