"""Sources of random numbers that give the same numbers in every process."""

from __future__ import annotations

import importlib

import torch


def seeded(seed: int) -> torch.Generator:
    """A source of random numbers, on the processor, that begins with `seed`."""
    # Torch makes no source before this module of its own was imported, and a start that imports little (`startup`) has not.
    importlib.import_module("torch._prims.rng_prims")
    return torch.Generator().manual_seed(seed)
