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
BEFORE_FITTING = 4


class Grouped(Coded):
    """What the quantisers of 2, 3 and 4 bits share. Weights whose columns `group` does not divide get the largest smaller
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
        blocks = block(weight).float()
        rounds = hqq.ROUNDS if inputs is None else BEFORE_FITTING
        codes, scales = hqq.solve(blocks, self.group_for(weight.shape[1]), self.bits, rounds)
        if inputs is not None:
            codes, scales = fitting.fit(blocks, scales, inputs.own, inputs.directions, self.bits)
        return {"codes": codes, "scales": scales}

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        rows, columns = shape
        codes = unpack(tensors["codes"], rows).float().view(rows, tensors["scales"].shape[0], -1)
        scales = tensors["scales"][:, :rows].float().transpose(0, 1)[..., None]  # [rows, groups, 2, 1]
        return ((codes - (1 << self.bits - 1)) * scales[:, :, 0] + scales[:, :, 1]).view(rows, columns)

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        if tensors["codes"].device.type == "cpu":
            return Product(tensors["codes"], tensors["scales"], shape[0])
        return dequantised(self, tensors, shape)
