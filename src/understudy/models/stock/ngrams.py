"""Parts of stock models that know the tokens before a node by themselves: tables of n-grams, in which a hash of the last tokens is
looked up, and the convolution beside them (Qwen4-Exp's per-layer embeddings, PLE).

Stock code hashes, gates and norms as it always does. It is handed the last tokens of each node's path in the place of its cache's,
its table is a module that reads rows from wherever they lie, and its convolution is the pass's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..hashed_rows import HashedTable

# The attributes of a stock module that looks n-grams up, its table among them, and of one that convolves what comes of that.
LOOKS_UP, TABLE = ("context_len", "ngram_size", "eos_token_id"), "ngram_embedding"
CONVOLVES, CONVOLUTION = ("short_conv_state_len", "ple_embedding"), "_short_conv"


def install_ngrams(model: nn.Module) -> int:
    """Let each part of the stock `model` that looks n-grams up ask the pass under way for tokens, and the convolutions beside them
    for what was before; returns how many tables there are."""
    count = 0
    for module in list(model.modules()):
        if all(hasattr(module, name) for name in (*LOOKS_UP, TABLE)):
            setattr(module, TABLE, HashedTable.of(getattr(module, TABLE)))
            object.__setattr__(module, "forward", partial(_embedded, module))
            count += 1
        if all(hasattr(module, name) for name in (*CONVOLVES, CONVOLUTION)):
            object.__setattr__(module, CONVOLUTION, partial(_convolved, module))
    return count


def _embedded(module: Any, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
    """What the last tokens of each node's path say together [1, n, numbers]. tokens [1, n]: places in a table, not looked at."""
    table: HashedTable = getattr(module, TABLE)
    if tokens.is_meta:
        return table.weight.new_empty(*tokens.shape, module.ngram_heads * table.weight.shape[1])
    before: Tensor = module.understudy.under_way.history(module.layer_idx)
    # what comes before a text is its end mark to this module
    before = torch.where(before < 0, module.eos_token_id, before)
    found: Tensor = type(module).forward(module, before, None)
    return found[None, :, -1]


def _convolved(module: Any, states: Tensor, *_: Any, **__: Any) -> Tensor:
    """The convolution of states [1, n, channels] along each node's path, the last of its layer's, then as stock code goes on.
    Between its taps, which are some tokens apart, stand noughts."""
    if states.is_meta:
        return states
    (apart,), weight = module.conv1d.dilation, module.conv1d.weight[:, 0]
    spread = weight.new_zeros(len(weight), module.short_conv_state_len + 1)
    spread[:, ::apart] = weight
    out: Tensor = module.understudy.under_way.convolve(module.layer_idx, states[0], spread, module.conv1d.bias, -1)
    return nn.functional.silu(out)[None]
