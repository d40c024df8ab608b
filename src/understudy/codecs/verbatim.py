"""What codecs have in common that keep a weight's own bits: they need nothing beside the data, and apply to any weight."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..quantizers import Tensors


class Verbatim(ABC):
    """A base for them. `decode` is torch alone, so it runs on every device."""

    needs_substitute = False
    needs_triton = False

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return True

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        return dtype.itemsize * 8

    @abstractmethod
    def decode(
        self, data: Tensor, count: int, columns: int, dtype: torch.dtype, substitute: Tensors, out: Tensor | None = None
    ) -> Tensor:
        """As `Codec.decode`."""

    def decode_on_device(
        self, data: Tensor, count: int, columns: int, dtype: torch.dtype, substitute: Tensors, out: Tensor | None = None
    ) -> Tensor:
        return self.decode(data, count, columns, dtype, substitute, out)
