"""Attention over a latent state (multi-head latent attention: DeepSeek-V2, arXiv 2405.04434), of which the KV cache keeps the state
and what positions turn, in the place of every head's keys and values, which are many times as large.

Stock code widens the state to keys and values of all heads. Here a query is multiplied by what would have widened the keys, and
what it attends to by what would have widened the values. That is the same but for the order of sums, and for keys and values that
are not rounded in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.state_form import HeadRows

# The Linear of stock attention that widens the state, and its method that makes keys and values with it.
WIDENS, EXPANDS = "kv_b_proj", "expand_kv"
# What stock attention that attends over states is told here: its `LatentHeads`.
HEADS = "latent_heads"


@dataclass(frozen=True)
class LatentHeads:
    """How the heads of one layer attend over latent states of `rank` numbers."""

    rank: int
    # numbers of a query that meet the state; those behind them meet what is turned
    plain: int
    # [n, heads, plain] -> [n, heads, rank]
    asked: HeadRows
    # [n, heads, rank] -> [n, heads, value size]
    widened: HeadRows

    @classmethod
    def of(cls, weight: Tensor, plain: int, value_size: int, product: Callable[[Tensor], HeadRows]) -> LatentHeads:
        """Of the `weight` [heads * (plain + value size), rank] that widens states to keys and values. `product`: what multiplies by
        a matrix for each head, as `Device.head_product`."""
        own = weight.view(-1, plain + value_size, weight.shape[1])
        return cls(weight.shape[1], plain, product(own[:, :plain].transpose(1, 2)), product(own[:, plain:]))

    def ask(self, query: Tensor) -> Tensor:
        """query [n, heads, plain + turned] -> [n, heads, rank + turned]"""
        return torch.cat((self.asked(query[..., : self.plain]), query[..., self.plain :]), -1)


def attend_over_states(
    model: nn.Module, weight_of: Callable[[str], Tensor], product: Callable[[Tensor], HeadRows]
) -> None:
    """Let each attention of the stock `model` that would widen latent states hand on these in the place of keys and values.
    `weight_of`: the weight, in the model's type, of a Linear by its path. `product`: see `LatentHeads.of`."""
    for path, module in model.named_modules():
        if hasattr(module, WIDENS) and hasattr(module, EXPANDS):
            own: Any = module
            heads = LatentHeads.of(weight_of(f"{path}.{WIDENS}"), own.qk_nope_head_dim, own.v_head_dim, product)
            object.__setattr__(module, HEADS, heads)
            object.__setattr__(module, EXPANDS, _as_they_are)


def _as_they_are(states: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
    """states [1, 1, n, rank] and what is turned [1, 1, n, turned] -> a key and a value of one head for all."""
    return torch.cat((states, turned), -1), states
