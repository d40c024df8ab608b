"""Attention that classes of transformers compute by themselves, and let nobody replace: it is handed on as that of others is.

Some have a method of their own for it (`METHOD`), of others the forward is computed here, with their own Linears. A bias that grows
with the position of the key (ALiBi) is further numbers of keys and queries: keys hold their positions, in parts that every type of
number tells apart, and a query the slope of its head. What is added to all scores of a query changes nothing, so a bias counts from
the beginning of the text. Whether a class computes what is computed here, the proof tells (`proving`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ..mixtures.lone_stacks import added, chosen_by, multiplied
from .hf import attention_interface

# The method, and what it is given.
METHOD, GIVEN = "_attn", ["query", "key", "value", "attention_mask"]
# Where such classes have what scores are divided by.
DIVISORS = ("scale_attn", "norm_factor")
# Numbers that keys and queries have for a bias by position: two parts of a position times three of a slope, and the rest of 8.
BIASED, STEP, SLOPES = 8, 256, 3
# Kinds of models whose keys have them.
ALIBI = ("bloom", "mpt")
# Kinds whose forward needs a mask, though nobody looks at it.
MASKED = ("mpt",)
# Attention of query, key and value [1, heads, n, size], with a scale and a window (None: none): [1, n, heads, size].
Attend = Callable[..., Tensor]


def install_own_attention(model: Any, attention: str) -> bool:
    """Let each attention in the stock `model` that is known to compute by itself attend by the implementation `attention`. Returns
    whether there is any."""
    found = False
    for module in list(model.modules()):
        if not hasattr(module, "layer_idx") and hasattr(module, "layer_id"):
            module.layer_idx = module.layer_id
        attend = partial(_attended, attention, module)
        if (whole := FORWARDS.get(type(module).__name__)) is not None:
            object.__setattr__(module, "forward", partial(whole, module, attend))
        elif _has_method(module):
            object.__setattr__(module, METHOD, partial(_by_method, module, attend))
            # masks of all positions, which nobody looks at any more
            module._buffers.pop("bias", None)
        else:
            continue
        found = True
    if found:
        model.config._attn_implementation = "eager" if model.config.model_type in MASKED else attention
    return found


def _has_method(module: Any) -> bool:
    method = getattr(type(module), METHOD, None)
    return method is not None and list(signature(method).parameters)[1:] == GIVEN


def _attended(attention: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
    out: Tensor = attention_interface()()[attention](module, query, key, value, None, **how)[0]
    return out


def _by_method(module: Any, attend: Attend, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, None]:
    divisor = next((getattr(module, name) for name in DIVISORS if hasattr(module, name)), 1.0)
    window = module.config.window_size if getattr(module, "attention_type", None) == "local" else None
    query, key = query.to(value.dtype), key.to(value.dtype)
    return attend(query, key, value, scaling=1.0 / float(divisor), sliding_window=window).transpose(1, 2), None


def _falcon(module: Any, attend: Attend, hidden: Tensor, alibi: Tensor | None = None, **given: Any) -> tuple[Tensor, None]:
    if alibi is not None:
        what = "a bias by position (alibi) that is rounded to 8 bits"
        raise CheckpointError(f"{type(module).__name__} adds {what}, which is not supported.")
    query, key, value = module._split_heads(module.query_key_value(hidden))
    if module.new_decoder_architecture:
        # one for each head is made of those that there are
        every = module.num_heads // module.num_kv_heads
        key, value = key[:, :, ::every], value[:, :, ::every]
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    turn: Any = sys.modules[type(module).__module__]
    query, key = turn.apply_rotary_pos_emb(query, key, *given["position_embeddings"])
    return module.dense(attend(query, key, value).flatten(2)), None


def _bloom(module: Any, attend: Attend, hidden: Tensor, residual: Tensor, layer_past: Any = None, **_: Any) -> tuple[Tensor, None]:
    query, key, value = module._reshape(module.query_key_value(hidden))
    slopes = sys.modules[type(module).__module__]._get_alibi_slopes(module.num_heads, hidden.device)
    query, key = biased(query, key, slopes, module.inv_norm_factor, layer_past)
    return module.dense(attend(query, key, value, scaling=module.inv_norm_factor).flatten(2)) + residual, None


def _mpt(
    module: Any, attend: Attend, hidden: Tensor, position_bias: Tensor, past_key_values: Any = None, **_: Any
) -> tuple[Tensor, None]:
    mixed = module.Wqkv(hidden)
    if module.clip_qkv:
        mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    query, key, value = (each.unflatten(-1, (module.n_heads, -1)).transpose(1, 2) for each in mixed.chunk(3, dim=2))
    # of two neighbours
    slopes = position_bias[:, 0, -1] - position_bias[:, 0, -2]
    query, key = biased(query, key, slopes, module.softmax_scale, past_key_values)
    return module.out_proj(attend(query, key, value, scaling=module.softmax_scale).flatten(2)), None


def _jetmoe(module: Any, attend: Attend, hidden_states: Tensor, **given: Any) -> tuple[Tensor, None, None]:
    """Queries are of experts, each of which attends by all heads of keys, and so is what is made of results."""
    experts, flat, size = module.experts, hidden_states.reshape(-1, hidden_states.shape[-1]), module.head_dim
    chosen, weights = chosen_by(experts.router, flat)
    made = multiplied(experts.input_linear, flat[:, None].expand(-1, module.top_k, -1), chosen)
    # the queries of all experts that share a head of keys, one after another
    query = made.view(len(flat), module.top_k, -1, size).permute(2, 1, 0, 3).flatten(0, 1)[None]
    both = module.kv_proj(hidden_states).view(*hidden_states.shape[:-1], 2, -1, size)
    key, value = (each.transpose(1, 2) for each in both.unbind(2))
    turn: Any = sys.modules[type(module).__module__]
    query, key = turn.apply_rotary_pos_emb(query, key, *given["position_embeddings"])
    found = attend(query, key, value, scaling=module.scaling)[0]
    rows = found.view(len(flat), -1, module.top_k, size).transpose(1, 2).flatten(2)
    out = added(multiplied(experts.output_linear, rows, chosen), weights)
    return out.view(hidden_states.shape) + experts.bias, None, None


FORWARDS: dict[str, Callable[..., tuple[Tensor | None, ...]]] = {
    "FalconAttention": _falcon, "BloomAttention": _bloom, "MptAttention": _mpt, "JetMoeAttention": _jetmoe,
}  # fmt: skip


def biased(query: Tensor, key: Tensor, slopes: Tensor, scale: float, cache: Any) -> tuple[Tensor, Tensor]:
    """query and key [1, heads, n, size] with BIASED more numbers each, so that scores, which are multiplied by `scale`, grow by the
    slope [heads] of a head for each position of the key. Positions are those that the pass's `cache` tells; None: 0, 1, ..."""
    count, heads = query.shape[2], query.shape[1]
    known = None if cache is None else cache.positions
    positions = torch.arange(count, device=query.device) if known is None else known[0].to(query.device)
    low = positions % STEP
    parts = torch.stack([positions - low, low], dim=-1).to(key.dtype)
    each = parts[..., None].expand(count, 2, SLOPES).flatten(1)
    own = nn.functional.pad(each, (0, BIASED - 2 * SLOPES))
    rest, split = slopes.float() / scale, []
    for _ in range(SLOPES):
        split.append(rest.to(query.dtype))
        rest = rest - split[-1].float()
    slope = nn.functional.pad(torch.stack(split, dim=-1).repeat(1, 2), (0, BIASED - 2 * SLOPES))
    query = torch.cat([query, slope[None, :, None].expand(1, heads, count, BIASED)], dim=-1)
    return query, torch.cat([key, own[None, None].expand(1, heads, count, BIASED)], dim=-1)
