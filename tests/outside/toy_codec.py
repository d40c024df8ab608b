"""A codec from outside the package: every byte of the weight, inverted."""

import torch
from torch import Tensor

from understudy.codecs.raw import Raw


class Inverted(Raw):
    name = "inverted"
    in_place = False
    encoded = decoded = 0

    def encode(self, blocks: Tensor, substitute: object) -> Tensor:
        Inverted.encoded += 1
        return ~super().encode(blocks, substitute)  # type: ignore[arg-type]

    def decode(
        self, data: Tensor, count: int, columns: int, dtype: torch.dtype, substitute: object, out: Tensor | None = None
    ) -> Tensor:
        Inverted.decoded += 1
        return super().decode(~data, count, columns, dtype, substitute, out)  # type: ignore[arg-type]

    def operand(self, data: Tensor, count: int, columns: int, substitute: object, out: Tensor | None = None):  # type: ignore[no-untyped-def]
        blocks = self.decode(data, count, columns, torch.bfloat16, substitute, out)
        return super().operand(blocks.view(torch.uint8).view(-1), count, columns, substitute)  # type: ignore[arg-type]
