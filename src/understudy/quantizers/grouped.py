"""A few bits a weight, one (scale, zero) a group of columns: w ~ (q - centre) * scale + zero, found by HQQ
and, where a text says what the inputs are like, fitted to the output.

Tensors: codes uint8 [nb, K, 8 * bits] (packed as `kernels.pack` says), scales bfloat16 [K / group, nb * 64, 2]. The centre
is 2 ** (bits - 1)."""

import torch
from torch import Tensor

from ..errors import UsageError
from ..kernels import fitting, hqq
from ..kernels.draft_product import Product
from ..kernels.pack import BLOCK, block, blocks_of, unpack
from . import Linear, Tensors, dequantised
from .coded import Coded
from .inputs import Inputs

# rounds of HQQ where fitting goes on from there
BEFORE_FITTING = 2
# weights that are quantised together, or one block
TOGETHER = 1 << 19


class Grouped(Coded):
    """What the quantisers of 2, 3, 4 and 6 bits share. Weights whose columns `group` does not divide get the largest smaller
    group that does."""

    grouped = True
    bits: int
    groups: tuple[int, ...] = (16, 32, 64, 128)
    usual = 64  # the group that need not be named

    def __init__(self, group: int) -> None:
        kind = f"int{self.bits}"
        if group not in self.groups:
            raise UsageError(f"{kind}: group must be one of {', '.join(map(str, self.groups))}, got {group}.")
        self.group = group
        self.name = kind if group == self.usual else f"{kind}:group={group}"

    def applies(self, rows: int, columns: int) -> bool:
        return columns % self.groups[0] == 0

    def group_for(self, columns: int) -> int:
        return max(group for group in self.groups if group <= self.group and columns % group == 0)

    def size(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
        padded = blocks_of(rows) * BLOCK
        return padded * columns * self.bits // 8 + padded * (columns // self.group_for(columns)) * 4

    def quantize(self, weight: Tensor, inputs: Inputs | None = None) -> Tensors:
        columns, total = weight.shape[1], blocks_of(len(weight))
        group = self.group_for(columns)
        codes = torch.empty((total, columns, 8 * self.bits), dtype=torch.uint8)
        scales = torch.empty((columns // group, total * BLOCK, 2), dtype=torch.bfloat16)
        count = min(max(TOGETHER // (columns * BLOCK), 1), total)
        # used again for all blocks: the system takes as long to hand out new memory as quantising takes
        room = torch.empty((count, columns, BLOCK), dtype=weight.dtype)
        floats = torch.empty((count, columns, BLOCK))
        for first in range(0, total, count):
            last = min(first + count, total)
            blocks = floats[: last - first].copy_(block(weight[first * BLOCK : last * BLOCK], room[: last - first]))
            # what is not finite counts as 0
            torch.nan_to_num_(blocks, 0.0, 0.0, 0.0)
            codes[first:last], scales[:, first * BLOCK : last * BLOCK] = self._solved(blocks, group, inputs)
        return {"codes": codes, "scales": scales}

    def _solved(self, blocks: Tensor, group: int, inputs: Inputs | None) -> tuple[Tensor, Tensor]:
        """Packed codes, and scales and zeros, of float32 blocks [nb, K, 64]."""
        if inputs is None:
            return hqq.solve(blocks, group, self.bits)
        scales = hqq.scales(blocks, group, self.bits, BEFORE_FITTING)
        return fitting.fit(blocks, scales, inputs.own, inputs.directions, self.bits)

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        rows, columns = shape
        codes = unpack(tensors["codes"], rows).float().view(rows, tensors["scales"].shape[0], -1)
        scales = tensors["scales"][:, :rows].float().transpose(0, 1)[..., None]  # [rows, groups, 2, 1]
        return ((codes - (1 << self.bits - 1)) * scales[:, :, 0] + scales[:, :, 1]).view(rows, columns)

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        if tensors["codes"].device.type == "cpu":
            return Product(tensors["codes"], tensors["scales"], shape[0])
        return dequantised(self, tensors, shape)
