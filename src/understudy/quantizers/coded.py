"""What all quantisers that keep codes and scales in blocks share: joining and cutting."""

from collections.abc import Sequence

import torch

from ..kernels.pack import BLOCK
from . import Tensors


class Coded:
    """Tensors: codes uint8 [nb, K, 8 * bits], scales bfloat16 [groups, nb * 64, 2]."""

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
