"""Convolutions around attention: Inkling's four in each layer, and ZAYA's compressed convolutional attention (CCA, arXiv
2510.04476), whose queries and keys are convolved, and half of whose values are those of the token before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...recurrent import RecurrentShape
from ..kept import HELD
from .mixer import Mixer, OfHeads, of_heads


def convolved_heads(config: Any) -> RecurrentShape:
    """What the convolutions of keys, of values and behind both halves of a layer keep (Inkling)."""
    return _four(config.num_key_value_heads * config.head_dim, config)


def convolved_window(config: Any) -> RecurrentShape:
    """The same of a layer with a window, which has heads of its own."""
    return _four(config.swa_num_key_value_heads * config.swa_head_dim, config)


def _four(keys: int, config: Any) -> RecurrentShape:
    return RecurrentShape(keys, config.conv_kernel_size, further=(keys, config.hidden_size, config.hidden_size))


def compressed_shape(config: Any) -> RecurrentShape:
    """What a layer of CCA keeps: queries and keys, the same once convolved, and the half of values that the next token takes."""
    keys = config.num_key_value_heads * config.head_dim
    channels = config.num_attention_heads * config.head_dim + keys
    return RecurrentShape(channels, max(config.cca_time0, config.cca_time1, 2), further=(channels, keys // 2))


class AddedConvolution(Mixer):
    """One of a layer's short convolutions, to which its input is added, in float32 (Inkling)."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        self.number = int(stock.conv_idx)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states: [1, n, channels] -> the same."""
        x = hidden_states.float()
        return (self.convolve(x, self.conv1d, self.number) + x).to(hidden_states.dtype)


class CompressedConvolution(Mixer):
    """Queries, keys and values of CCA. Queries and keys go through a convolution of each channel, then through one of each head,
    and their common mean is added."""

    def __init__(self, stock: Any) -> None:
        super().__init__(stock)
        self.size, self.heads, self.kv_heads = stock.head_dim, stock.num_attention_heads, stock.num_key_value_heads
        setattr(self.conv_qk_grouped.weight, HELD, True)
        # The weight of the heads' convolution that is laid out, what multiplies by it, and what biases come to.
        self._laid_out: tuple[Tensor, OfHeads, Tensor] | None = None

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, conv_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden_states [1, n, hidden size] -> queries, keys and values [1, n, heads, size]."""
        count, shared = hidden_states.shape[1], self.heads // self.kv_heads
        query, key = self.q_proj(hidden_states), self.k_proj(hidden_states)
        mean = (query.view(1, count, self.kv_heads, shared, -1) + key.view(1, count, self.kv_heads, 1, -1)) * 0.5
        mixed = self._by_heads(self.convolve(torch.cat([query, key], dim=-1), self.conv_qk_depthwise, biased=False))
        query, key = mixed[:, :, : self.heads], mixed[:, :, self.heads :]
        given = self.v_proj_delayed(hidden_states)
        delayed = self.behind(given, 1, 2)
        if self.v_proj_delayed.bias is not None and past_key_values is not None:
            # before a text stands what is made of nothing
            first = (past_key_values.positions == 0)[..., None]
            delayed = torch.where(first, self.v_proj_delayed.bias, delayed)
        value = torch.cat([self.v_proj_current(hidden_states), delayed], dim=-1).view(1, count, self.kv_heads, -1)
        return query + mean.flatten(2, 3), key + mean.mean(dim=-2), value

    def _by_heads(self, x: Tensor) -> Tensor:
        """x [1, n, channels], without its bias, through the convolution of each head: [1, n, heads of both, size]."""
        heads, weight = self.heads + self.kv_heads, self.conv_qk_grouped.weight
        taps = weight.shape[2]
        before = [self.behind(x, back, 1) if back else x for back in range(taps - 1, -1, -1)]
        if x.is_meta:
            return x.view(1, -1, heads, self.size)
        if self._laid_out is None or self._laid_out[0] is not weight:
            own = weight.detach().view(heads, self.size, self.size, taps)
            bias = self.conv_qk_depthwise.bias.view(heads, 1, self.size, 1)
            constant = (own.float() * bias.float()).sum((2, 3)) + self.conv_qk_grouped.bias.view(heads, -1).float()
            self._laid_out = weight, of_heads(own.transpose(2, 3).flatten(2)), constant
        _, product, constant = self._laid_out
        rows = torch.cat([each[0].view(-1, heads, self.size) for each in before], dim=-1)
        return (product(rows).float() + constant).to(x.dtype)[None]
