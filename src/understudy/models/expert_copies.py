"""The substitutes of a layer's experts as the draft view multiplies by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..kernels.draft_experts import ExpertProduct
from ..kernels.pack import BLOCK
from ..quantizers import Quantizer
from .routed import Routed


def expert_copies(
    quantizer: Quantizer, tensors: Mapping[str, Tensor], shape: tuple[int, int], experts: int, dtype: torch.dtype
) -> Callable[[Routed], Tensor]:
    """The map of routed rows [m, K] to [m, N / experts] by the substitutes of `experts`, which are that of a weight of `shape`
    [N, K]. Keeps `tensors`, which lie in this process's memory."""
    rows = shape[0] // experts
    if quantizer.grouped and "codes" in tensors:
        product = ExpertProduct(tensors["codes"], tensors["scales"], experts)
        return lambda routed: product(routed.rows, routed.counts(experts))

    def multiply(routed: Routed) -> Tensor:
        found, start = [routed.rows.new_empty(0, rows)], 0
        for expert, count in enumerate(routed.counts(experts)):
            if count:
                own = quantizer.cut(tensors, expert * rows // BLOCK, rows // BLOCK)
                linear = quantizer.linear(own, (rows, shape[1]), dtype)
                found.append(linear(routed.rows[start : start + count]).to(routed.rows.dtype))
                start += count
        return torch.cat(found)

    return multiply
