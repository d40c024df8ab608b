"""A codec from outside the package: every byte of the weight, inverted."""

from dataclasses import replace

import torch
from torch import Tensor

from understudy.codecs import Encoded
from understudy.codecs.raw import Raw
from understudy.kernels.exact_operand import Operand


class Inverted(Raw):
    name = "inverted"
    in_place = False
    encoded = decoded = 0

    def encode(self, blocks: Tensor, substitute: object) -> Tensor:
        Inverted.encoded += 1
        return ~super().encode(blocks, substitute)  # type: ignore[arg-type]

    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        Inverted.decoded += 1
        return super().decode(replace(part, data=~part.data), out)

    def operand(self, part: Encoded, out: Tensor | None = None) -> Operand:
        blocks = self.decode(part, out)
        return super().operand(replace(part, data=blocks.view(torch.uint8).view(-1)))
