"""The module that takes the place of a recurrent layer's stock one, and hands the convolution and the rule to the pass under way.

It is built on the stock module's own Linears, norms and parameters, under their names. It has one form for one token and for many,
where stock code has two that sum in different orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...kernels.head_products import HeadProduct
from ...kernels.recurrence import RuleStep

# A matrix for each head: rows [n, heads, K] -> [n, heads, N].
OfHeads = Callable[[Tensor], Tensor]


def of_heads(weights: Tensor) -> OfHeads:
    """What multiplies by `weights` [heads, N, K], each row for itself; on a device torch does, and whether rows are apart there is
    tried with all else of the stock model."""
    if weights.device.type == "cpu":
        return HeadProduct(weights)
    turned = weights.transpose(1, 2)
    return lambda rows: torch.matmul(rows.transpose(0, 1), turned).transpose(0, 1)


class Mixer(nn.Module):
    """The recurrent part of one layer, with the submodules, parameters and buffers of the `stock` module that it replaces."""

    # CurrentPass of the model, set when it is paired with a Store
    understudy: Any = None
    # buffers of the stock module that it has no use for
    left_out: tuple[str, ...] = ()

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.layer_idx = int(stock.layer_idx)
        for name, child in stock.named_children():
            self.add_module(name, child)
        for name, parameter in stock.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in stock.named_buffers(recurse=False):
            if name in self.left_out:
                continue
            self.register_buffer(name, buffer, persistent=name not in stock._non_persistent_buffers_set)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A submodule, parameter or buffer of the stock module, under its name there."""

    def convolve(self, x: Tensor, convolution: Any, number: int = 0, *, biased: bool = True) -> Tensor:
        """The causal convolution of x [1, n, channels] along each node's path, which is convolution `number` of its layer, with its
        bias or without."""
        if x.is_meta:
            return x
        weights = convolution.weight[:, 0], convolution.bias if biased else None
        out: Tensor = self.understudy.under_way.convolve(self.layer_idx, x[0], *weights, number)
        return out[None]

    def behind(self, x: Tensor, back: int, number: int) -> Tensor:
        """What x [1, n, channels], which convolution `number` of the layer records, was `back` tokens before each node; zeros
        before the text."""
        if x.is_meta:
            return x
        # a convolution that takes that token alone
        weight = x.new_zeros(x.shape[-1], back + 1)
        weight[:, 0] = 1
        out: Tensor = self.understudy.under_way.convolve(self.layer_idx, x[0], weight, None, number)
        return out[None]

    def recur(self, step: RuleStep) -> Tensor:
        """What the rule gives after each node: [n, value heads, value size] float32."""
        if step.value.is_meta:
            return step.value
        out: Tensor = self.understudy.under_way.recur(self.layer_idx, step)
        return out
