"""A quantiser from outside the package: the sign of each weight, and one size for each of its rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.kernels.pack import BLOCK, block, blocks_of, unblock
from understudy.quantizers import Linear, Tensors, dequantised
from understudy.quantizers.inputs import Inputs


class Signs:
    name = "signs"
    grouped = False
    used = 0

    def applies(self, rows: int, columns: int) -> bool:
        return True

    def size(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
        return blocks_of(rows) * BLOCK * (columns + 4)

    def quantize(self, weight: Tensor, inputs: Inputs | None = None) -> Tensors:
        sizes = torch.zeros(blocks_of(len(weight)), BLOCK)
        sizes.view(-1)[: len(weight)] = weight.float().abs().mean(1)
        return {"signs": block((weight >= 0).to(torch.uint8)), "sizes": sizes}

    def merge(self, pieces: Sequence[Tensors]) -> Tensors:
        return {name: torch.cat([piece[name] for piece in pieces]) for name in ("signs", "sizes")}

    def cut(self, tensors: Tensors, first: int, blocks: int) -> Tensors:
        return {name: tensor[first : first + blocks] for name, tensor in tensors.items()}

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        signs = unblock(tensors["signs"], shape[0]).float() * 2 - 1
        return signs * tensors["sizes"].view(-1)[: shape[0], None]

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        Signs.used += 1
        return dequantised(self, tensors, shape)
