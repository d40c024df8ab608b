"""A model run from tensors as they are, with no Store: what calibrating and proving share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cache import Cache
from ..kernels.recurrence_cpu import fold
from ..weights.layout import ModelLayout
from .sharing import share
from .stock import structure
from .stock.shape import ModelShape, cache_dtype
from .streamed import CurrentPass, attention_name, pair


@dataclass(frozen=True)
class Unprepared:
    """A stock model whose Linears wait for a pass, with a cache of its own.

    module, base: the causal model and its headless part. current: holds the pass under way."""

    module: nn.Module
    base: nn.Module
    current: CurrentPass
    cache: Cache


def unprepared(
    config: Any, dtype: torch.dtype, layout: ModelLayout, read: Callable[[str], Tensor], room: tuple[int, int]
) -> Unprepared:
    """The model of `config`; `read(name)` gives each shared tensor of `layout`; `room`: sequences, and tokens of each."""
    module, current = structure.skeleton(config, dtype, attention_name()), CurrentPass()
    pair(module, [spec.module for spec in layout.linears], current)
    shared: Mapping[str, Tensor] = {name: read(name) for name in layout.shared}
    share(module, layout, shared, dtype)
    sequences, tokens = room
    cache = Cache(ModelShape.of(config).layers, sequences, -(-tokens // 64) * 64, cache_dtype(dtype), fold=fold)
    return Unprepared(module, module.get_submodule(str(module.base_model_prefix)), current, cache)
