"""Lightning attention (MiniMax-Text-01, arXiv 2501.08313): a state that each head forgets at a speed of its own, the same for all
tokens, writes a value along a key, and is read by a query. No position turns them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.recurrence import RuleStep
from ...recurrent import RecurrentShape
from .mixer import Mixer


def lightning_shape(config: Any) -> RecurrentShape:
    """What a layer of lightning attention keeps: no convolution, and as many heads of keys as of values."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return RecurrentShape(0, 1, heads, heads, size, size)


class Lightning(Mixer):
    """Lightning attention, token by token as stock code decodes."""

    # made of `slope_rate`, for blocks of tokens that are read at once
    left_out = ("query_decay", "key_decay", "diagonal_decay")

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        self.act: Callable[[Tensor], Tensor] = stock.act_fn
        self.heads, self.size = stock.num_attention_heads, stock.head_dim

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """hidden_states: [1, n, hidden size] -> the same, and no weights."""
        made = self.act(self.qkv_proj(hidden_states))[0].float().view(-1, self.heads, 3 * self.size)
        query, key, value = (part.contiguous() for part in torch.split(made, self.size, dim=-1))
        decay = torch.exp(-self.slope_rate.float().view(1, -1)).expand(len(made), -1).contiguous()
        out = self.recur(RuleStep(query, key, value, decay)).flatten(1)[None]
        gate = torch.sigmoid(self.output_gate(hidden_states))
        result: Tensor = self.out_proj(gate * self.norm(out.to(hidden_states.dtype)))
        return result, None


def take_any_cache(model: Any) -> None:
    """Let the headless part of the stock `model`, which wants a cache of its own class to put states in, take any: nothing is put
    there."""
    base: nn.Module = model.get_submodule(model.base_model_prefix)
    base.register_forward_pre_hook(lambda _, given, named: (given, {**named, "use_cache": False}), with_kwargs=True)
