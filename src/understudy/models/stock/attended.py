"""Whether a stock model attends as it was asked to: a pass without numbers is watched, and each layer that computes attention by
itself, or with other keys than the config foretells, is refused by name.

Some classes accept any attention implementation and never use it; nothing else would tell before their text is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ... import startup
from ...errors import CheckpointError
from .shape import ModelShape

# Tokens of a watched pass: a square of so many scores is attention; no gate has so many outputs.
TOKENS = 29
# What computes attention, by the names of torch's functions: of any input, and of a square of scores.
_WHOLE, _OF_SCORES = "scaled_dot_product_attention", "softmax"


@dataclass
class AttentionWatch:
    """What attention functions were called with in a pass, and what was computed without them."""

    # The name of the kind of model.
    kind: str
    # What the config foretells.
    shape: ModelShape
    # The layers that attended, in order.
    layers: list[int] = field(default_factory=list)
    # The functions of torch that computed attention elsewhere.
    elsewhere: list[str] = field(default_factory=list)

    def call(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Note that `module` attends with query, key and value [1, heads, n, size]. Raises CheckpointError where it does so in
        both directions, or with other heads and sizes than the config foretells."""
        index = int(module.layer_idx)  # type: ignore[arg-type]
        if getattr(module, "is_causal", True) is False:
            raise CheckpointError(f"{self.kind} reads text in both directions: it is an encoder, which writes no text.")
        if index >= len(self.shape.layers):
            raise CheckpointError(
                f"{self.kind} attends in layer {index}, where its config tells of {len(self.shape.layers)} layers; this is not"
                " supported yet."
            )
        told = self.shape.layers[index]
        found = key.shape[1], key.shape[3], value.shape[3]
        if found != (told.kv_heads, told.key_size, told.value_size):
            raise CheckpointError(
                f"Layer {index} of {self.kind} has {found[0]} heads of keys, of {found[1]} and {found[2]} numbers, where its config"
                f" tells of {told.kv_heads}, of {told.key_size} and {told.value_size}; this is not supported yet."
            )
        self.layers.append(index)

    def check(self) -> None:
        """Raise CheckpointError if a layer attended without us, or more than once."""
        if self.elsewhere or (self.layers and len(set(self.layers)) < len(self.layers)):
            how = f"by itself ({self.elsewhere[0]})" if self.elsewhere else "more than once in a layer"
            raise CheckpointError(f"{self.kind} computes attention {how} in transformers; this is not supported yet.")


class _Elsewhere(TorchFunctionMode):
    """Notes the functions of torch that compute attention while no attention function was called."""

    def __init__(self, watch: AttentionWatch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == _WHOLE or (name == _OF_SCORES and args and tuple(args[0].shape[-2:]) == (TOKENS, TOKENS)):
            self.watch.elsewhere.append(name)
        return function(*args, **kwargs)


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Inside runs one pass of the stock `model` over TOKENS meta tokens. Raises CheckpointError for what the watch refuses."""
    startup.load_all(startup.SHAPES)
    config: Any = model.config
    watch = AttentionWatch(type(model).__name__, ModelShape.of(config))
    attending = [module for module in model.modules() if hasattr(module, "layer_idx")]
    for module in attending:
        object.__setattr__(module, "watch", watch)
    try:
        with _Elsewhere(watch):
            yield
    finally:
        for module in attending:
            object.__delattr__(module, "watch")
    watch.check()
