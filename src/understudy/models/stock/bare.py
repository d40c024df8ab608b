"""Modules that are built without memory for their weights: those of Linears, of tables and of experts lie on the meta device."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# Held while classes of torch are changed, and while one is built that must not be.
CONSTRUCTION = threading.Lock()
# Dimensions of a tensor that is a weight of several matrices.
STACKED = 3
# Numbers of a matrix that is made without values, above which it is one of many.
LARGE = 5 << 20
# What makes tensors of any or of random numbers.
_MAKERS = ("empty", "zeros", "ones", "rand", "randn", "full")


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """nn.Linear and nn.Embedding built inside hold no memory; buffers and norms are real and keep their computed values.

    No first values are drawn for them: on the meta device that does nothing, and takes what compiles models to find out.
    An embedding's padding index concerns gradients alone. It is left out: a pad token may then lie anywhere, and a lookup
    depends on nothing but the table."""

    def on_meta(original: Any) -> Any:
        def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **{**kwargs, "device": "meta"})
            # transformers would draw first values for weights that hold none, which takes half of the time
            self._is_hf_initialized = True  # type: ignore[assignment]

        return init

    def without_padding(original: Any) -> Any:
        def init(
            self: nn.Module,
            num_embeddings: int,
            embedding_dim: int,
            padding_idx: int | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            original(self, num_embeddings, embedding_dim, None, *args, **kwargs)

        return init

    def draw_nothing(self: nn.Module) -> None:
        """Leave `self`, which holds no values, as it is."""

    kinds: tuple[Any, ...] = nn.Linear, nn.Embedding
    with CONSTRUCTION:
        linear, embedding = nn.Linear.__init__, nn.Embedding.__init__
        draws = [kind.reset_parameters for kind in kinds]
        try:
            for kind in kinds:
                kind.reset_parameters = draw_nothing
            nn.Linear.__init__ = on_meta(linear)  # type: ignore[method-assign]
            nn.Embedding.__init__ = without_padding(on_meta(embedding))  # type: ignore[method-assign]
            yield
        finally:
            nn.Linear.__init__ = linear  # type: ignore[method-assign]
            nn.Embedding.__init__ = embedding  # type: ignore[method-assign]
            for kind, draw in zip(kinds, draws, strict=True):
                kind.reset_parameters = draw


@contextmanager
def stacks_on_meta() -> Iterator[None]:
    """Inside, tensors of three dimensions or more hold no memory, nor do large matrices that are not filled: those that modules
    keep are weights of all experts."""
    with _Meta():
        yield


class _Meta(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(function, "__name__", "") in _MAKERS and "device" not in kwargs:
            size = args[0] if args and isinstance(args[0], (tuple, list, torch.Size)) else args
            sizes = [each for each in size if isinstance(each, int)]
            tall = function.__name__ == "empty" and len(sizes) > 1 and math.prod(sizes) > LARGE
            if tall or sum(each > 1 for each in sizes) >= STACKED:
                kwargs["device"] = "meta"
        return function(*args, **kwargs)
