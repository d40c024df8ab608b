"""A CUDA GPU, if there is one that can be used: what is missing is said in one line."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UsageError
from ..tiers.cuda import Cuda
from .accelerator import Accelerator
from .graphs import CudaGraphs

LEAST = (8, 0)  # compute capability: the first with bfloat16 in its matrix units
INSTEAD = "use --device cpu"


def open_cuda(cuda: Any = torch.cuda) -> Accelerator:
    """The current CUDA device. UsageError where PyTorch has no CUDA, or no driver, GPU, or too old a one is there."""
    try:
        cuda.init()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0].rstrip(". ") if str(error) else "no reason given"
        raise UsageError(f"--device cuda: there is no usable GPU or driver here ({reason}); {INSTEAD}.") from None
    found = tuple(cuda.get_device_capability())
    if found < LEAST:
        name, has = cuda.get_device_name(), ".".join(map(str, found))
        raise UsageError(f"--device cuda: {name} has compute capability {has}, 8.0 is needed for bfloat16; {INSTEAD}.")
    return Accelerator("cuda", "cuda", Cuda(), graphs=CudaGraphs())
