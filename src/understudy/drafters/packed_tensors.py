"""Named arrays in one stretch of memory, so that all of them go to a device, or come back, in one copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PackedTensors:
    """`whole` numbers are int64 and lie first, `reals` are float64. `memory`: uint8, all of it."""

    memory: Tensor
    whole: Tensor
    reals: Tensor
    named: Mapping[str, Tensor]

    @classmethod
    def of(cls, whole: Shapes, reals: Shapes, make: Callable[[int], Tensor]) -> PackedTensors:
        """`make(nbytes)` gives the memory, of any content."""
        counts = [sum(math.prod(shape) for shape in shapes.values()) for shapes in (whole, reals)]
        memory = make(8 * sum(counts))
        numbers = memory.view(torch.int64)[: counts[0]], memory.view(torch.float64)[counts[0] :]
        named = {}
        for shapes, words in zip((whole, reals), numbers, strict=True):
            at = 0
            for name, shape in shapes.items():
                named[name] = words[at : at + math.prod(shape)].view(shape)
                at += math.prod(shape)
        return cls(memory, *numbers, named)

    def alike(self, make: Callable[[int], Tensor]) -> PackedTensors:
        """The same arrays in other memory."""
        whole, reals = (
            {name: tuple(array.shape) for name, array in self.named.items() if array.dtype is kind}
            for kind in (torch.int64, torch.float64)
        )
        return PackedTensors.of(whole, reals, make)

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name]
