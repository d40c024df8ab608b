"""Eight bits a weight, one scale a row: w ~ q * scale. For a head, or where four bits agree too seldom.

Tensors: codes int8 [nb * 64, K], scales bfloat16 [nb * 64]."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.pack import BLOCK, blocks_of
from . import Linear, Tensors


class Int8:
    name = "int8"

    def applies(self, rows: int, columns: int) -> bool:
        return columns % 32 == 0  # ATen's kernel reads past the end of other rows

    def size(self, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> int:
        return blocks_of(rows) * BLOCK * (columns + 2)

    def quantize(self, weight: Tensor) -> Tensors:
        rows = weight.shape[0]
        finite = torch.nan_to_num(pad(weight.float(), (0, 0, 0, blocks_of(rows) * BLOCK - rows)), 0.0, 0.0, 0.0)
        scales = (finite.abs().amax(dim=1) / 127).to(torch.bfloat16)
        inverse = torch.where(scales.float() > 1e-36, 1 / scales.float(), 0.0)
        codes = (finite * inverse[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"codes": codes, "scales": scales}

    def merge(self, pieces: Sequence[Tensors]) -> Tensors:
        return {name: torch.cat([piece[name] for piece in pieces]) for name in ("codes", "scales")}

    def cut(self, tensors: Tensors, first: int, blocks: int) -> Tensors:
        return {name: tensor[first * BLOCK : (first + blocks) * BLOCK] for name, tensor in tensors.items()}

    def dequantize(self, tensors: Tensors, shape: tuple[int, int]) -> Tensor:
        return tensors["codes"][: shape[0]].float() * tensors["scales"][: shape[0], None].float()

    def linear(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> Linear:
        codes, scales = tensors["codes"], tensors["scales"]

        def apply(x: Tensor) -> Tensor:
            y: Tensor = torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16), codes, scales)
            return y[:, : shape[0]].to(x.dtype)

        return apply
