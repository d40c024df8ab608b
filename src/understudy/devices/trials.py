"""Whether products of few bits on a device are near torch's: tried once for each kind, since nothing else would tell before drafts
are poor. Numbers are the same each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.expert_kernels import ExpertLinear
from ..kernels.pack import BLOCK
from ..quantizers import Linear, Quantizer, Tensors

# rows and blocks of outputs
TRIED, TRIED_BLOCKS = 3, 4
# by how much products may be off torch's, relatively
SOUND = 0.03


class Trials:
    """What was found of each kind of products."""

    def __init__(self) -> None:
        self._sound: dict[str, bool] = {}

    def wrong(self, kind: str, off: Callable[[], float]) -> str:
        """What is wrong with products of this kind, which are `off()` off torch's; empty: nothing is."""
        if kind not in self._sound:
            self._sound[kind] = off() <= SOUND
        return "" if self._sound[kind] else f"the kernel for {kind} gives wrong results"


def off_torch(product: Linear, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Of a `product` by the weight of `shape` that `tensors` are of."""
    x = _rows(TRIED, shape[1], tensors["codes"], dtype)
    some = min(TRIED_BLOCKS, tensors["codes"].shape[0])
    outputs = min(some * BLOCK, shape[0])
    weight = quantizer.dequantize(quantizer.cut(tensors, 0, some), (outputs, shape[1]))
    return _off(product(x)[:, :outputs].float(), x.float() @ weight.float().T)


def experts_off_torch(
    product: ExpertLinear, quantizer: Quantizer, tensors: Tensors, shape: tuple[int, int], experts: int, dtype: torch.dtype
) -> float:
    """Of a `product` by the matrices of `experts`, of which the first and the last have a row."""
    codes, rows = tensors["codes"], shape[0] // experts
    x = _rows(2, shape[1], codes, dtype)
    ends = torch.tensor([0, experts - 1], dtype=torch.int32)
    starts = torch.searchsorted(ends, torch.arange(experts + 1, dtype=torch.int32), out_int32=True)
    found = product(x, ends.to(codes.device), starts.to(codes.device))
    blocks = rows // BLOCK
    weights = [quantizer.dequantize(quantizer.cut(tensors, e * blocks, blocks), (rows, shape[1])) for e in ends.tolist()]
    return _off(found.float(), torch.stack([weight.float() @ row.float() for weight, row in zip(weights, x, strict=True)]))


def _rows(count: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.sin(torch.arange(count * columns, device=like.device) * 0.7).view(count, -1).to(dtype)


def _off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
