"""transformers' model code, without the GPU compiler it would bring along where there is no GPU.

`transformers.modeling_utils` imports torch's compiler, and that imports triton if it is installed: 71 MiB that a CPU never
uses (docs/log.md). It is hidden from them while they are imported; whoever wants it afterwards can still import it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["AttentionInterface", "StockCache"]


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Inside, importing `module` fails as if it were not installed, unless it was imported before."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


if torch.cuda.is_available():
    from transformers import AttentionInterface
    from transformers import Cache as StockCache
else:
    with _without("triton"):
        from transformers import AttentionInterface
        from transformers import Cache as StockCache
