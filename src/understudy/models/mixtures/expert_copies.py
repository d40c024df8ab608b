"""The substitutes of a layer's experts as the draft view multiplies by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...devices import Device
from ...kernels.draft_experts import ExpertProduct
from ...kernels.expert_kernels import ExpertLinear
from ...kernels.pack import BLOCK
from ...quantizers import Quantizer, Tensors
from .routed import Routed


@dataclass(frozen=True)
class CodedExperts:
    """The map of routed rows by codes of experts on a processor."""

    product: ExpertProduct

    def __call__(self, routed: Routed) -> Tensor:
        return self.product(routed.rows, routed.counts(self.product.experts))


def expert_copies(
    quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], experts: int, dtype: torch.dtype, device: Device
) -> Callable[[Routed], Tensor]:
    """The map of routed rows [m, K] to [m, N / experts] by the substitutes of `experts`, which are that of a weight of `shape`
    [N, K]. Keeps `tensors`, which lie on `device`."""
    rows = shape[0] // experts
    there = device.draft_experts(quantizer, tensors, shape, experts, dtype)
    if there is not None:
        return lambda routed: _asked(there, routed)
    if quantizer.grouped and not device.own_memory:
        return CodedExperts(ExpertProduct(tensors["codes"], tensors["scales"], experts))

    def multiply(routed: Routed) -> Tensor:
        # zeros for what goes to no expert
        found = routed.rows.new_zeros(len(routed.rows), rows)
        for expert, own in routed.groups(experts):
            copy = quantizer.cut(tensors, expert * rows // BLOCK, rows // BLOCK)
            found[own] = quantizer.linear(copy, (rows, shape[1]), dtype)(routed.rows[own]).to(found.dtype)
        return found

    return multiply


def _asked(product: ExpertLinear, routed: Routed) -> Tensor:
    assert routed.starts is not None, "a device that multiplies by experts has found the rows of each"
    return product(routed.rows, routed.experts, routed.starts)
