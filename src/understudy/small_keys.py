"""Keys and values in 8 bits, for whoever asks for them: a line of bytes for each, its codes and then their step, a float32.

They are not the model's own: a number is off by half a step at most, so a text may differ from the exact model's."""

from __future__ import annotations

import torch
from torch import Tensor

# What is said wherever they are used.
NOT_EXACT = "keys and values have 8 bits (--kv-bits 8): texts are near the exact model's and not always the same"
# Bytes of a step.
STEP_BYTES = 4
# The type of a slab of such lines.
LINES = torch.uint8
# A step of zeros alone.
LEAST_STEP = 1e-30


def packed(numbers: Tensor) -> Tensor:
    """numbers [..., size] of any type -> lines [..., size + STEP_BYTES]: codes from -127 to 127, and what one of them is worth."""
    exact = numbers.float()
    steps = (exact.abs().amax(-1, keepdim=True) / 127).clamp(min=LEAST_STEP)
    codes = (exact / steps).round().to(torch.int8)
    return torch.cat([codes.view(LINES), steps.contiguous().view(LINES)], -1)


def plain(slab: Tensor) -> Tensor:
    """Keys or values [..., size] of part of a slab: lines as float32, others as they are."""
    if slab.dtype != LINES:
        return slab
    codes, steps = slab[..., :-STEP_BYTES], slab[..., -STEP_BYTES:]
    return codes.view(torch.int8).float() * steps.contiguous().view(torch.float32)


def stored(numbers: Tensor, slab: Tensor) -> Tensor:
    """`numbers` as `slab` holds them."""
    return packed(numbers) if slab.dtype == LINES else numbers.to(slab.dtype)


def size_in(slab: Tensor) -> int:
    """Numbers of each key, or value, in `slab`."""
    return int(slab.shape[-1]) - (STEP_BYTES if slab.dtype == LINES else 0)
