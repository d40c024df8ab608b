"""Blocks that several layers share, each with adapters of its own (Zamba2, arXiv 2411.15242): every use is a block by itself here,
whose weights are tensors that another use has too. So a pass brings them once for each use, as it comes to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..mixtures.tall_experts import JOINED

# What a layer that has such a block calls it; where a block's parts list adapters, one for each use, and where they say which use
# a layer is.
BLOCK, ADAPTERS, USES = "shared_transformer", "_adapter_list", "layer_dic"


def install_shared_blocks(model: Any) -> None:
    """Let each layer of the stock `model` that shares a block have one of its own, with the adapters of its use alone, and say
    which tensors it is made of."""
    first: dict[int, str] = {}
    joined: dict[str, tuple[str, ...]] = {}
    for path, layer in model.named_modules():
        block = layer._modules.get(BLOCK)
        if block is None or not hasattr(block, "self_attn"):
            continue
        number = next(int(part) for part in reversed(path.split(".")) if part.isdigit())
        source = first.setdefault(block.block_id, f"{path}.{BLOCK}")
        block.self_attn.layer_idx = number
        for owner in block.modules():
            _keep_own(owner, number)
        for name, _ in block.named_parameters():
            joined[f"{path}.{BLOCK}.{name}"] = (f"{source}.{name}",)
    if joined:
        setattr(model, JOINED, {**getattr(model, JOINED, {}), **joined})


def _keep_own(owner: Any, layer: int) -> None:
    """Leave those adapters in a part of a block that its use in `layer` goes through."""
    for name, adapters in _adapters(owner):
        own = getattr(owner, USES)[layer]
        for place in range(len(adapters)):
            if place != own:
                adapters[place] = nn.Identity()
        assert len(list(adapters[own].children())) > 0, f"{name} has no adapter for layer {layer}"


def _adapters(owner: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in owner.named_children():
        if name.endswith(ADAPTERS) and isinstance(child, nn.ModuleList) and hasattr(owner, USES):
            yield name, child
