"""Keys that are compressed, a block of tokens to one entry (DeepSeek-V4): stock modules make what entries are made of. The pass
under way keeps that, lets the entry of each node be made at which a block ends, and attends to entries beside a window.

Stock code keeps entries in a cache of its own, in the order in which tokens come. Here an entry is a node's own, of its own path,
so the code around the Linears, the norm and the rope is replaced. Such modules are told by their parts; whether they compute what
is computed here, the proof tells (`proving`)."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...compression import CompressedShape
from ...errors import CheckpointError
from ...kernels import team
from ...kernels.chosen_keys import IndexQuery
from .shape import ModelShape

# What a stock module that compresses has, beside the Linears, the norm and the rope that it makes entries with.
_SAYS = ("compress_rate", "head_dim", "position_bias", "rope_layer_type")
_PARTS = ("kv_proj", "gate_proj", "kv_norm", "rotary_emb")
# What one has that chooses among entries, too.
_CHOOSES = ("q_b_proj", "scorer", "index_topk")
_SCORES = ("weights_proj", "softmax_scale", "weights_scaling")


def compresses(module: nn.Module) -> bool:
    """Is `module` a stock one that makes entries of blocks of tokens: those that attention looks at, or those of an index?"""
    return all(hasattr(module, name) for name in (*_SAYS, *_PARTS))


def install_compressors(model: nn.Module) -> None:
    """Let each module of the stock `model` that compresses keys ask the pass under way. Raises CheckpointError for one that does so
    otherwise than its config tells."""
    layers = ModelShape.of(model.config).layers if any(map(compresses, model.modules())) else ()
    found: dict[int, CompressedShape] = {}
    module: Any
    for path, module in list(model.named_modules()):
        own: Any = getattr(module, "compressor", None)
        if own is None or not compresses(own):
            continue
        index: Any = getattr(own, "indexer", None)
        found[int(module.layer_idx)] = _shape_of(path, own, index)
        _replace(own, _compressed)
        if index is not None:
            _replace(index, _indexed)
    foretold = {layer: shape.compressed for layer, shape in enumerate(layers) if shape.compressed is not None}
    if found != foretold:
        layer = min(layer for layer in {*found, *foretold} if found.get(layer) != foretold.get(layer))
        what = f"Layer {layer} of {type(model).__name__} compresses keys as {found.get(layer)}, where its config tells"
        raise CheckpointError(f"{what} of {foretold.get(layer)}; this is not supported yet.")


def _replace(module: nn.Module, forward: Any) -> None:
    object.__setattr__(module, "understudy", None)
    object.__setattr__(module, "forward", partial(forward, module))


def _shape_of(path: str, own: Any, index: Any) -> CompressedShape:
    """How the stock module `own` at `path` compresses, and its `index` among what it makes, if there is one.

    Raises CheckpointError for an index that is built otherwise, or is one of other blocks."""
    overlaps = own.position_bias.shape == (own.compress_rate, 2 * own.head_dim)
    if index is None:
        return CompressedShape(own.compress_rate, overlaps)
    built = compresses(index) and all(hasattr(index, name) for name in _CHOOSES)
    scores = built and all(hasattr(index.scorer, name) for name in _SCORES)
    if not scores or _series(index) != _series(own) or index.compress_rate != own.compress_rate:
        raise CheckpointError(f"{path} chooses among compressed keys in a way that is not supported yet ({type(index).__name__}).")
    return CompressedShape(own.compress_rate, overlaps, index.head_dim)


def _series(module: Any) -> int:
    """Of how many blocks an entry is made: its own, or the one before too."""
    return int(module.position_bias.shape[1]) // int(module.head_dim)


def _compressed(
    module: Any, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, past_key_values: Any, layer_idx: int
) -> tuple[Tensor, None]:
    """What stock attention is given in the place of all entries: none, and no mask for them."""
    _hand_over(module, hidden_states, layer_idx, of_index=False)
    if (index := getattr(module, "indexer", None)) is not None:
        index(hidden_states, q_residual, position_ids, past_key_values, layer_idx)
    return hidden_states.new_empty(len(hidden_states), 1, 0, module.head_dim), None


def _indexed(module: Any, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, _: Any, layer_idx: int) -> None:
    """Let the pass choose by what a stock index asks."""
    _hand_over(module, hidden_states, layer_idx, of_index=True)
    scorer = module.scorer
    queries = module.q_b_proj(q_residual).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
    weights = scorer.weights_proj(hidden_states)
    if hidden_states.is_meta:
        return
    queries = _turned(module, queries, position_ids)[0].transpose(0, 1)
    asked = IndexQuery(queries, weights[0].float() * scorer.weights_scaling, scorer.softmax_scale, module.index_topk)
    module.understudy.under_way.choose_entries(layer_idx, asked)


def _hand_over(module: Any, hidden: Tensor, layer: int, *, of_index: bool) -> None:
    """Give the pass what it makes entries of: what is added up, and what each number of it counts."""
    parts = torch.cat((module.kv_proj(hidden), module.gate_proj(hidden)), -1)
    if not parts.is_meta:
        module.understudy.under_way.compress(layer, parts[0], partial(entry_of, module), of_index=of_index)


def entry_of(module: Any, parts: Tensor, number: int) -> Tensor:
    """[size]: the entry that a stock `module` makes of block `number` of a text, of `parts` [tokens, numbers] of its tokens, with
    those of the block before where blocks overlap."""
    rate, size, bias = module.compress_rate, module.head_dim, module.position_bias
    # on one thread: shares of several may end in less than a vector, and round otherwise
    with team.stock_alone():
        values, counts = parts.chunk(2, -1)
        if _series(module) > 1:
            values = torch.cat((values[:rate, :size], values[rate:, size:]))
            counts = torch.cat((counts[:rate, :size] + bias[:, :size], counts[rate:, size:] + bias[:, size:]))
            if number == 0:
                # nothing comes of a block before the text
                counts[:rate] = -torch.inf
                values[:rate] = 0
        else:
            counts = counts + bias
        weights = counts.softmax(0, dtype=torch.float32).to(values.dtype)
        normed = module.kv_norm((values * weights).sum(0)[None, None])
        return _turned(module, normed[:, None], torch.tensor([[number * rate]]))[0, 0, 0]


def _turned(module: Any, x: Tensor, positions: Tensor) -> Tensor:
    """x [1, heads, n, size], turned by `positions` [1, n] as the rope of a stock `module` does."""
    turn: Any = sys.modules[type(module).__module__]
    cos, sin = module.rotary_emb(x, position_ids=positions, layer_type=module.rope_layer_type)
    turned: Tensor = turn.apply_rotary_pos_emb(x, cos, sin)
    return turned
