"""Attention of stock code that takes the nodes of a pass for a run from the end of its cache on: each is told its own position.

Llama 4 scales queries by position in layers without a rope, and asks its cache alone where they begin; so does Inkling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# In stock attention: says that queries are scaled by position, or that a bias goes by it.
SCALES = ("attn_temperature_tuning", "rel_extent")


class CacheEnd:
    """The cache of a pass, as one layer sees it: what it holds is as long as makes the position of each node right."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def get_seq_length(self, *_: Any) -> Tensor:
        """[n]: the position of each node less its number in the pass."""
        positions: Tensor = self.cache.positions[0]
        return positions - torch.arange(len(positions), device=positions.device)

    def get_query_offset(self, *_: Any) -> Tensor:
        """The same."""
        return self.get_seq_length()

    def get_mask_sizes(self, count: int, *_: Any) -> tuple[int, int]:
        """As if a pass of `count` nodes were the whole text: what is made of it is not looked at."""
        return count, 0


def tell_positions(model: nn.Module) -> int:
    """Let attention in the stock `model` that counts from the end of its cache find the positions of a pass's nodes there; returns
    how many layers do."""
    count = 0
    for module in model.modules():
        if hasattr(module, "layer_idx") and any(getattr(module, name, False) for name in SCALES):
            module.register_forward_pre_hook(_told, with_kwargs=True)
            count += 1
    return count


def _told(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = named.get("past_key_values")
    return given, named if cache is None else {**named, "past_key_values": CacheEnd(cache)}
