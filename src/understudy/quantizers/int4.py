"""Four bits a weight, one (scale, zero) a group of columns: w ~ (q - 8) * scale + zero, found by HQQ.

Tensors: codes uint8 [nb, K, 32] (packed as `kernels.pack` says), scales bfloat16 [K / group, nb * 64, 2]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from ..kernels import hqq
from ..kernels.dot import has_vnni
from ..kernels.gemv import Product
from ..kernels.pack import BLOCK, block, blocks_of, native_packing, unpack
from . import Linear, Tensors, dequantised

GROUPS = (32, 64, 128, 256)


class Int4:
    """Weights whose columns `group` does not divide get the largest smaller group that does."""

    def __init__(self, *, group: int = 64) -> None:
        if group not in GROUPS:
            raise UsageError(f"int4: group must be one of {', '.join(map(str, GROUPS))}, got {group}.")
        self.group = group
        self.name = "int4" if group == 64 else f"int4:group={group}"

    def applies(self, rows: int, columns: int) -> bool:
        return columns % GROUPS[0] == 0

    def group_for(self, columns: int) -> int:
        return max(group for group in GROUPS if group <= self.group and columns % group == 0)

    def size(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
        padded = blocks_of(rows) * BLOCK
        return padded * columns // 2 + padded * (columns // self.group_for(columns)) * 4

    def quantize(self, weight: Tensor) -> Tensors:
        codes, scales = hqq.solve(block(weight).float(), self.group_for(weight.shape[1]))
        return {"codes": codes, "scales": scales}

    def merge(self, pieces: Sequence[Tensors]) -> Tensors:
        return {
            "codes": torch.cat([piece["codes"] for piece in pieces]),
            "scales": torch.cat([piece["scales"] for piece in pieces], dim=1),
        }

    def cut(self, tensors: Tensors, first: int, blocks: int) -> Tensors:
        return {
            "codes": tensors["codes"][first : first + blocks],
            "scales": tensors["scales"][:, first * BLOCK : (first + blocks) * BLOCK],
        }

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        rows, columns = shape
        codes = unpack(tensors["codes"], rows).float().view(rows, tensors["scales"].shape[0], -1)
        scales = tensors["scales"][:, :rows].float().transpose(0, 1)[..., None]  # [rows, groups, 2, 1]
        return ((codes - 8) * scales[:, :, 0] + scales[:, :, 1]).view(rows, columns)

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        if tensors["codes"].device.type != "cpu":
            return dequantised(self, tensors, shape)
        if native_packing() and not has_vnni():
            return _aten(tensors, shape)
        return Product(tensors["codes"], tensors["scales"], shape[0])


def _aten(tensors: Tensors, shape: tuple[int, int]) -> Linear:
    """ATen's kernel on our codes as they lie, in bfloat16: it is slow in any other dtype."""
    codes, scales, (rows, columns) = tensors["codes"], tensors["scales"], shape
    packed = codes.view(codes.shape[0] * BLOCK, columns // 2)
    group = columns // scales.shape[0]

    def apply(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), packed, group, scales)
        return y[:, :rows].to(x.dtype)

    return apply
