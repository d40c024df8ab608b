"""Eight bits a weight, one scale a row: w ~ (q - 128) * scale. For a head, or where four bits agree too seldom.

Tensors: codes uint8 [nb, K, 64], scales bfloat16 [1, nb * 64, 2] (scale, and a zero that is 0)."""

import torch
from torch import Tensor

from ..kernels.draft_product import Product
from ..kernels.pack import BLOCK, block, blocks_of, unblock
from . import Linear, Tensors, dequantised
from .coded import Coded
from .inputs import Inputs


class Int8(Coded):
    name = "int8"
    grouped = True

    def applies(self, rows: int, columns: int) -> bool:
        return columns % 32 == 0

    def size(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
        return blocks_of(rows) * BLOCK * (columns + 4)

    def quantize(self, weight: Tensor, inputs: Inputs | None = None) -> Tensors:
        finite = torch.nan_to_num(weight.float(), 0.0, 0.0, 0.0)
        scale = (finite.abs().amax(dim=1) / 127).to(torch.bfloat16)
        inverse = torch.where(scale.float() > 1e-36, 1 / scale.float(), 0.0)
        codes = ((finite * inverse[:, None]).round() + 128).clamp(1, 255).to(torch.uint8)
        scales = torch.zeros((1, blocks_of(len(weight)) * BLOCK, 2), dtype=torch.bfloat16)
        scales[0, : len(weight), 0] = scale
        return {"codes": block(codes), "scales": scales}

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        return (unblock(tensors["codes"], shape[0]).float() - 128) * tensors["scales"][0, : shape[0], :1].float()

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        if tensors["codes"].device.type == "cpu":
            return Product(tensors["codes"], tensors["scales"], shape[0])
        return dequantised(self, tensors, shape)
