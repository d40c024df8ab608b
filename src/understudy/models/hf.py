"""Classes of transformers, imported at first use without the GPU compiler they would bring along where there is no GPU.

`transformers.modeling_utils` imports torch's compiler, and that imports triton if it is installed: 71 MiB that a CPU never
uses (docs/log.md). Triton is hidden while they are imported; a later `import triton` finds it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch


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


@cache
def cache_class() -> Any:
    """The class of transformers' caches."""
    with nullcontext() if torch.cuda.is_available() else _without("triton"):
        from transformers import Cache
    return Cache


@cache
def attention_interface() -> Any:
    """The registry of transformers' attention functions."""
    with nullcontext() if torch.cuda.is_available() else _without("triton"):
        from transformers import AttentionInterface
    return AttentionInterface


@cache
def register_attention(name: str, function: Callable[..., Any]) -> str:
    """Make `function` transformers' attention implementation `name`, and return the name."""
    attention_interface().register(name, function)
    return name
