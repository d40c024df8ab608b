"""Named arrays in one stretch of memory, so that all of them go to a device, or come back, in one copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# The shape of each array by its name.
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PackedTensors:
    """int64 arrays, and after them float64 arrays, in one stretch of memory."""

    # All of it: uint8.
    memory: Tensor
    # Its two parts, flat: int64 and float64.
    integers: Tensor
    reals: Tensor
    # A view of each array.
    named: Mapping[str, Tensor]

    @classmethod
    def of(cls, integers: Shapes, reals: Shapes, make: Callable[[int], Tensor]) -> PackedTensors:
        """Arrays of these shapes; `make(nbytes)` gives uint8 memory of any content."""
        counts = [sum(math.prod(shape) for shape in shapes.values()) for shapes in (integers, reals)]
        memory = make(8 * sum(counts))
        parts = memory.view(torch.int64)[: counts[0]], memory.view(torch.float64)[counts[0] :]
        named = {}
        for shapes, part in zip((integers, reals), parts, strict=True):
            at = 0
            for name, shape in shapes.items():
                named[name] = part[at : at + math.prod(shape)].view(shape)
                at += math.prod(shape)
        return cls(memory, *parts, named)

    def alike(self, make: Callable[[int], Tensor]) -> PackedTensors:
        """Arrays of the same names and shapes in other memory."""
        integers, reals = (
            {name: tuple(array.shape) for name, array in self.named.items() if array.dtype is dtype}
            for dtype in (torch.int64, torch.float64)
        )
        return PackedTensors.of(integers, reals, make)

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name]
