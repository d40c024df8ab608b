"""Four bits a weight and a half for scales: the substitute that others are compared with."""

import torch
from torch import Tensor

from ..kernels.dot import best
from ..kernels.pack import BLOCK, native_packing
from . import Linear, Tensors
from .grouped import Grouped


class Int4(Grouped):
    bits = 4
    groups = (32, 64, 128, 256)

    def __init__(self, *, group: int = 64) -> None:
        super().__init__(group)

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        if tensors["codes"].device.type == "cpu" and best(4) is None and native_packing():
            return _aten(tensors, shape)
        return super().linear(tensors, shape, dtype)


def _aten(tensors: Tensors, shape: tuple[int, int]) -> Linear:
    """ATen's kernel on our codes as they lie, in bfloat16: it is slow in any other dtype."""
    codes, scales, (rows, columns) = tensors["codes"], tensors["scales"], shape
    packed = codes.view(codes.shape[0] * BLOCK, columns // 2)
    group = columns // scales.shape[0]

    def apply(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), packed, group, scales)
        return y[:, :rows].to(x.dtype)

    return apply
