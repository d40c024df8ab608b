"""The module that takes every streamed Linear's place, and the attention that takes every attention's place.

Both only hand their input to the pass under way, so the stock model code around them is run as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .stock import AttentionInterface, StockCache

ATTENTION = "understudy"


class Pass(Protocol):
    """What is being run: the draft view, or one tile of the target view."""

    def linear(self, index: int, x: Tensor) -> Tensor: ...

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None: ...

    def attend(self, layer: int, query: Tensor, scaling: float, window: int, softcap: float) -> Tensor: ...


class Runner:
    """Holds the pass under way. One per model; not a module, so that it is shared and never moved or saved."""

    current: Pass | None = None


class PairedLinear(nn.Module):
    """Linear number `index` in the order of execution; its weights are the Store's, its bias is shared by both views."""

    def __init__(self, runner: Runner, index: int, bias: nn.Parameter | None, outputs: int):
        super().__init__()
        self.runner, self.index, self.bias, self.outputs = runner, index, bias, outputs
        self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        assert self.runner.current is not None, "a streamed model runs only through its target or draft view"
        y = self.runner.current.linear(self.index, x.reshape(-1, x.shape[-1]))
        y = y.view(*x.shape[:-1], self.outputs)
        return y if self.bias is None else y + self.bias


class PassCache(StockCache):
    """The cache handed to stock code: it writes to the slab, and tells the attention which layer it is in."""

    def __init__(self, runner: Runner) -> None:  # the parent's layers are not wanted
        self.runner = runner
        self.layer = -1
        self.layers = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.runner.current is not None
        self.layer = layer_idx
        self.runner.current.remember(layer_idx, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def __repr__(self) -> str:
        return f"PassCache(layer={self.layer})"


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, scaling: float | None = None,
    sliding_window: int | None = None, softcap: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface; query [1, heads, n, d] -> [1, n, heads, d]. Keys and values are read from the slab."""
    if query.device.type == "meta":
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None
    if others.get("s_aux") is not None:
        raise CheckpointError(f"{type(module).__name__} has attention sinks, which are not supported yet.")
    runner: Runner = module.understudy  # type: ignore[assignment]
    current = runner.current
    assert current is not None and isinstance(module.layer_idx, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = current.attend(module.layer_idx, query[0].transpose(0, 1), float(scale), sliding_window or 0, softcap or 0.0)
    return out[None], None


AttentionInterface.register(ATTENTION, attention)


def pair(model: nn.Module, order: list[str], runner: Runner) -> None:
    """Put a PairedLinear in the place of each Linear named in `order`, and give each attention its runner."""
    for index, path in enumerate(order):
        parent, _, name = path.rpartition(".")
        old = model.get_submodule(path)
        assert isinstance(old, nn.Linear)
        bias = None if old.bias is None else nn.Parameter(torch.empty(0), requires_grad=False)
        setattr(model.get_submodule(parent), name, PairedLinear(runner, index, bias, old.out_features))
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            object.__setattr__(module, "understudy", runner)


def share(model: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give every parameter but the embedding its tensor: under the checkpoint's name, with or without the base's prefix."""
    prefix = f"{model.base_model_prefix}."
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        if parameter is not embedding.weight:
            names = (name, name.removeprefix(prefix), prefix + name)
            parameter.data = next(tensors[n] for n in names if n in tensors).to(dtype)
            parameter.requires_grad_(False)
