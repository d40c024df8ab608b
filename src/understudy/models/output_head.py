"""The stock model without what lies before its output head: features in, logits out, with the caps and scales of its own class.

Whatever a class does to its logits is done here by the same code: the model's own forward runs, with a base in its place that gives
back the features. In drafts the head multiplies by the draft's copy of its weight, so nothing is streamed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .stock import hf
from .streamed import CurrentPass


@cache
def _output_class() -> Any:
    """The class of what a base gives back, made at first use: its parent is imported then."""

    class FeaturesOutput(hf.base_output_class()):  # type: ignore[misc]
        """Has nothing but a last hidden state; what kinds of models have beside that is None."""

        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return FeaturesOutput


class GivenBase(nn.Module):
    """Stands in the place of a model's `base`, and of the `decoder` in it that some classes call: gives back what it was handed.

    What else a class asks of its base is answered by that."""

    features: Tensor | None = None

    def __init__(self, base: nn.Module, decoder: str):
        super().__init__()
        # Not as submodules: it is no part of the model.
        object.__setattr__(self, "replaced", base)
        object.__setattr__(self, decoder, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["replaced"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return _output_class()(last_hidden_state=self.features)


class HeadPass:
    """A pass in which only the output head is multiplied, by `linear`."""

    def __init__(self, index: int, linear: Callable[[Tensor], Tensor]):
        self.index = index
        self.multiply = linear

    def linear(self, index: int, x: Tensor) -> Tensor:
        assert index == self.index, f"Linear {index} stands before the output head"
        return self.multiply(x)


class FeatureModel:
    """Logits [..., vocab] of features [..., hidden size], as the stock `model` makes them of what its base gives.

    Gradients of the features pass through."""

    def __init__(self, model: nn.Module):
        decoder = model.get_decoder()  # type: ignore[operator]
        path = next(name for name, module in model.named_modules() if module is decoder)
        prefix = str(model.base_model_prefix)
        self.base = GivenBase(model.get_submodule(prefix), path.rpartition(".")[2])
        # Shares all modules with `model` but the base, and what that lies in.
        self.model = _with_part(model, prefix.split("."), self.base)

    def __call__(self, features: Tensor) -> Tensor:
        flat = features.reshape(1, -1, features.shape[-1])
        ids = torch.zeros(flat.shape[:2], dtype=torch.int64, device=flat.device)
        self.base.features = flat
        try:
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        finally:
            self.base.features = None
        return logits.reshape(*features.shape[:-1], -1)


def _with_part(module: nn.Module, path: list[str], part: nn.Module) -> nn.Module:
    """A copy of `module` with `part` at `path`, which shares all else with it."""
    if not path:
        return part
    changed = copy.copy(module)
    inner = _with_part(module.get_submodule(path[0]), path[1:], part)
    changed._modules = {**module._modules, path[0]: inner}
    return changed


class OutputHead:
    """Scores features [..., hidden size] as the output head of the stock `model` does: logits [..., vocab].

    `linear` is the draft's copy of its weight, streamed Linear number `index`."""

    def __init__(self, model: nn.Module, current: CurrentPass, index: int, linear: Callable[[Tensor], Tensor]):
        self.current = current
        self.under_way: Any = HeadPass(index, linear)
        self.model = FeatureModel(model)

    @torch.inference_mode()
    def __call__(self, features: Tensor) -> Tensor:
        before, self.current.under_way = self.current.under_way, self.under_way
        try:
            return self.model(features)
        finally:
            self.current.under_way = before
