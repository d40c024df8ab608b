"""A CUDA GPU, if there is one that can be used: what is missing is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import SubprocessError
from typing import Any

import torch

from ..errors import UsageError, first_line
from ..tiers.cuda import Cuda
from .accelerator import Accelerator
from .graphs import CudaGraphs

LEAST = (8, 0)  # compute capability: the first with bfloat16 in its matrix units
# Of the driver, torch without CUDA, the C compiler that is started, and the library it makes. Triton's own compiler has another.
TROUBLE = (RuntimeError, AssertionError, OSError, SubprocessError, ImportError)
INSTEAD = "use --device cpu"


def kernels_run() -> str:
    """Why the project's own kernels cannot run, in a few words; empty: they can, for one did."""
    try:
        from triton.errors import TritonError  # only now: it may not be there

        from ..kernels.gpu.probe import probe
    except ImportError:
        return "Triton is not installed (pip install triton)"
    try:
        probe("cuda")
    except (TritonError, *TROUBLE) as error:
        return f"Triton cannot run its kernels: {first_line(error)}"
    return ""


def open_cuda(cuda: Any = torch.cuda, kernels: Callable[[], str] = kernels_run) -> Accelerator:
    """The current CUDA device. UsageError where PyTorch has no CUDA, or no driver, GPU, or too old a one is there.

    Where kernels cannot be compiled, or the driver is too old for them, plain torch does their work, and a note says so."""
    try:
        cuda.init()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = first_line(error) if str(error) else "no reason given"
        raise UsageError(f"--device cuda: there is no usable GPU or driver here ({reason}); {INSTEAD}.") from None
    found = tuple(cuda.get_device_capability())
    if found < LEAST:
        name, has = cuda.get_device_name(), ".".join(map(str, found))
        raise UsageError(f"--device cuda: {name} has compute capability {has}, 8.0 is needed for bfloat16; {INSTEAD}.")
    return Accelerator("cuda", "cuda", Cuda(), graphs=CudaGraphs(), without_triton=kernels())
