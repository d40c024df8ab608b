"""What codecs have in common that keep only what a copy leaves open of weights.

A part is a header of HEADER bytes, whole numbers of which the first is the codec's own kind, and sections, each at a multiple of
ALIGNED bytes. What would not be smaller is kept as it is, behind a header of zeros."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..kernels.pack import flat
from . import Encoded

HEADER, ALIGNED = 64, 64
# the kind of what is kept as it is
PLAIN = 0


class BesideCopy(ABC):
    """A base for them."""

    needs_substitute = True
    in_place = False
    linked = False
    # about how many bits a usual bfloat16 weight takes, by the quantiser of its copy
    usual: Mapping[str, float]
    # the types of weights that can be encoded, and how many bits more than a bfloat16 one takes
    more: Mapping[torch.dtype, float] = {torch.bfloat16: 0.0}

    def applies(self, dtype: torch.dtype, quantizer: str) -> bool:
        return dtype in self.more and quantizer.partition(":")[0] in self.usual

    def bits(self, dtype: torch.dtype, quantizer: str) -> float:
        if not self.applies(dtype, quantizer):
            return dtype.itemsize * 8
        return self.usual[quantizer.partition(":")[0]] + self.more[dtype]

    @abstractmethod
    def decode(self, part: Encoded, out: Tensor | None = None) -> Tensor:
        """As `Codec.decode`."""


def joined(numbers: Sequence[int], sections: Sequence[Tensor], blocks: Tensor) -> Tensor:
    """The bytes of a part with these `numbers` in its header; of `blocks` as they are where that takes no more."""
    flats = [flat(section.contiguous()) for section in sections]
    places = [HEADER]
    for section in flats:
        places.append(places[-1] + padded(section.numel()))
    if places[-1] >= blocks.nbytes:
        return verbatim(blocks)
    data = torch.zeros(places[-1], dtype=torch.uint8)
    data[: 8 * len(numbers)] = torch.tensor(numbers).view(torch.uint8)
    for place, section in zip(places, flats, strict=False):
        data[place : place + section.numel()] = section
    return data


def verbatim(blocks: Tensor) -> Tensor:
    """The bytes of a part that keeps `blocks` as they are."""
    return torch.cat((torch.full((HEADER,), PLAIN, dtype=torch.uint8), flat(blocks.contiguous())))


def plain(part: Encoded) -> Tensor | None:
    """The blocks that a part keeps as they are; None: it does not."""
    kept = int(part.data[:8].view(torch.int64)) == PLAIN
    return part.data[HEADER:].view(part.dtype).view(part.shape) if kept else None


def numbers_of(data: Tensor, count: int) -> list[int]:
    """The first numbers of a header."""
    found: list[int] = data[: 8 * count].view(torch.int64).tolist()
    return found


def cut(data: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The sections of a part, whose sizes in bytes are these."""
    sections, place = [], HEADER
    for size in sizes:
        sections.append(data[place : place + size])
        place += padded(size)
    assert place == data.numel(), f"a residual of {data.numel()} bytes has {place}"
    return sections


def padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
