"""Indices of stock models whose keys stand for blocks of tokens (Qwen4-Exp): what tells them, and what computes in their place.

Stock code makes all keys of a text anew in every pass, with the positions of the whole text, and goes from query to query. Here the
index's own Linears and norms make queries and what is kept of each token, and the pass under way makes keys and chooses
(`models.pooled_keys`). Whether that is what the class computes, the proof tells (`proving`)."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ...kernels.attention import ALL, Chosen
from ..pooled_keys import PooledQuery

# The values and the parts of such an index.
VALUES = ("index_n_heads", "index_kv_heads", "index_head_dim", "block_topk", "compress_ratio")
PARTS = ("index_qk_proj", "q_layernorm", "k_layernorm")
# What a model calls the module that makes turns of positions.
TURNS = "rotary_emb"


class ChosenMask:
    """Stands for the mask that stock attention joins with what its index chose: what was chosen is all that comes of it."""

    dtype = torch.bool

    def __and__(self, chosen: Chosen) -> Chosen:
        return chosen


def pools(module: Any) -> bool:
    """Is it an index of means over blocks?"""
    return all(isinstance(getattr(module, name, None), int) for name in VALUES) and all(hasattr(module, name) for name in PARTS)


def install_pooled_indices(model: nn.Module) -> int:
    """Let each index of blocks in the stock `model` ask the pass under way; returns how many there are."""
    found = [module for module in model.modules() if pools(module)]
    if not found:
        return 0
    turns = next((module for path, module in model.named_modules() if path.rpartition(".")[2] == TURNS), None)
    if turns is None:
        raise CheckpointError(f"{type(model).__name__} has an index of blocks and no {TURNS}, which is not supported yet.")
    for index in found:
        object.__setattr__(index, "forward", partial(_chosen, index, partial(_pooled, index, turns)))
    for module in model.modules():
        if pools(getattr(module, "indexer", None)):
            module.register_forward_pre_hook(_masked, with_kwargs=True)
    return len(found)


def _masked(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return given, {**named, "attention_mask": ChosenMask()}


def _turn(index: Any) -> Any:
    return sys.modules[type(index).__module__].apply_rotary_pos_emb


def _chosen(index: Any, pool: Any, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], *_: Any, **__: Any) -> Chosen:
    """What the nodes with these `hidden` states look at."""
    size, heads = index.index_head_dim, index.index_n_heads
    made = index.index_qk_proj(hidden)
    if made.is_meta:
        return ALL
    asked, keys = made.split([heads * size, index.index_kv_heads * size], dim=-1)
    cos, sin = position_embeddings
    asked = _turn(index)(index.q_layernorm(asked.unflatten(-1, (heads, size))), cos=cos, sin=sin, unsqueeze_dim=2)
    query = PooledQuery(asked[0], None, size**-0.5, index.block_topk, index.compress_ratio, pool)
    chosen: Chosen = index.understudy.under_way.choose(index.layer_idx, keys[0], query)
    return chosen


def _pooled(index: Any, turns: Any, tokens: Tensor, starts: Tensor) -> Tensor:
    """The keys [m, size] of blocks: the mean of what is kept of their tokens [m, block, size], normed, and turned by the positions
    `starts` [m] at which they begin."""
    total = tokens[:, 0].float()
    # one after another, which sums alike in any company
    for place in range(1, tokens.shape[1]):
        total = total + tokens[:, place]
    # as stock code has them, whatever type the index is kept in
    mean = (total / tokens.shape[1]).to(index.q_layernorm.weight.dtype)
    cos, sin = turns(mean, starts[None])
    keys: Tensor = _turn(index)(index.k_layernorm(mean)[:, None], cos=cos[0], sin=sin[0])[:, 0]
    return keys
