"""What codecs have in common that keep a weight's own bits: they need nothing beside the data, and apply to any weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from . import Encoded


class Verbatim(ABC):
    """A base for them. `decode` is torch alone, so it runs on every device, but where one says otherwise."""

    needs_substitute = False
    needs_triton = False
    form = ""

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return True

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        return dtype.itemsize * 8

    @abstractmethod
    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        """As `Codec.decode`."""

    def places(self, starts: Sequence[int], counts: Sequence[int], where: str) -> Tensor | None:
        return None

    def decode_on_device(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        assert part.places is None, "parts are decoded one at a time"
        return self.decode(part, out)
