"""Indices of stock models with a key for each block of tokens (Qwen4-Exp, GLM-5.3): what tells them, and what takes their place.

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

# The values and the parts of an index of means, and of one that learns how much each token of a block counts.
MEANS = ("index_n_heads", "index_kv_heads", "index_head_dim", "block_topk", "compress_ratio"), (
    "index_qk_proj", "q_layernorm", "k_layernorm",
)  # fmt: skip
LEARNS = ("n_heads", "head_dim", "index_topk", "index_kpool"), (
    "wq_b", "wk", "k_norm", "weights_proj", "index_kpool_compress_ape", "index_kpool_compress_gate",
)  # fmt: skip
# Of the latter: whether tokens behind the last whole block are looked at.
TAIL = "index_kpool_always_select_tail"
# The method of stock attention that makes a mask of what such an index chose.
MASKS = "build_attention_mask_from_topk"
# What a model calls the module that makes turns of positions.
TURNS = "rotary_emb"


class ChosenMask:
    """Stands for the mask that stock attention joins with what its index chose: what was chosen is all that comes of it."""

    dtype = torch.bool

    def __and__(self, chosen: Chosen) -> Chosen:
        return chosen


def pools(module: Any) -> bool:
    """Is it an index of blocks?"""
    return _is(module, MEANS) or _is(module, LEARNS)


def _is(module: Any, kind: tuple[tuple[str, ...], tuple[str, ...]]) -> bool:
    values, parts = kind
    return all(isinstance(getattr(module, name, None), int) for name in values) and all(hasattr(module, name) for name in parts)


def install_pooled_indices(model: nn.Module) -> int:
    """Let each index of blocks in the stock `model` ask the pass under way; returns how many there are. Raises CheckpointError for
    one that chooses in a way that is not known."""
    found = [module for module in model.modules() if pools(module)]
    turns = next((module for path, module in model.named_modules() if path.rpartition(".")[2] == TURNS), None)
    for index in found:
        if _is(index, LEARNS):
            if not getattr(index, TAIL, False):
                what = "hides the tokens behind the last whole block"
                raise CheckpointError(f"{type(index).__name__} {what} ({TAIL} is false), which is not supported yet.")
            object.__setattr__(index, "forward", partial(_chosen_by_weights, index, partial(_weighted, index)))
        elif turns is None:
            raise CheckpointError(f"{type(model).__name__} has an index of blocks and no {TURNS}, which is not supported yet.")
        else:
            object.__setattr__(index, "forward", partial(_chosen, index, partial(_pooled, index, turns)))
    for module in model.modules() if found else ():
        if hasattr(module, MASKS):
            object.__setattr__(module, MASKS, _handed_on)
        elif pools(getattr(module, "indexer", None)):
            module.register_forward_pre_hook(_masked, with_kwargs=True)
    return len(found)


def _handed_on(topk_indices: Chosen, *_: Any, **__: Any) -> Chosen:
    """What an index chose, in the place of a mask."""
    return topk_indices


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
    # as stock code has them, whatever type the index is kept in
    mean = (_added(tokens) / tokens.shape[1]).to(index.q_layernorm.weight.dtype)
    cos, sin = turns(mean, starts[None])
    keys: Tensor = _turn(index)(index.k_layernorm(mean)[:, None], cos=cos[0], sin=sin[0])[:, 0]
    return keys


def _chosen_by_weights(index: Any, pool: Any, hidden_states: Tensor, q_resid: Tensor, *_: Any, **__: Any) -> Chosen:
    """The same of an index that learns how much each token of a block counts: it keeps a key and that of each token."""
    asked = index.wq_b(q_resid).unflatten(-1, (index.n_heads, index.head_dim))
    keys = index.k_norm(index.wk(hidden_states))
    counts = nn.functional.linear(hidden_states, index.index_kpool_compress_gate)
    weights = index.weights_proj(hidden_states.to(index.weights_proj.weight.dtype)).float() * index.n_heads**-0.5
    if keys.is_meta:
        return ALL
    block = index.index_kpool
    query = PooledQuery(asked[0], weights[0], index.softmax_scale, index.index_topk // block, block, pool)
    chosen: Chosen = index.understudy.under_way.choose(index.layer_idx, torch.cat([keys, counts], dim=-1)[0], query)
    return chosen


def _weighted(index: Any, tokens: Tensor, _: Tensor) -> Tensor:
    """The keys [m, size] of blocks: those of their tokens [m, block, 2 * size], behind which stands what each number counts."""
    keys, counts = tokens.to(index.k_norm.weight.dtype).chunk(2, dim=-1)
    logits = counts.float() + index.index_kpool_compress_ape.float()
    # a softmax, and sums, one token after another: alike in any company
    highest = logits[:, 0]
    for place in range(1, logits.shape[1]):
        highest = torch.maximum(highest, logits[:, place])
    shares = (logits - highest[:, None]).exp()
    shares = (shares / _added(shares)[:, None]).to(keys.dtype)
    return _added((shares * keys).float()).to(keys.dtype)


def _added(numbers: Tensor) -> Tensor:
    """The sum over the second dimension, one after another, in float32."""
    total = numbers[:, 0].float()
    for place in range(1, numbers.shape[1]):
        total = total + numbers[:, place]
    return total
