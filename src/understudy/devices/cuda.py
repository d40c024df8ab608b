"""A CUDA GPU, if there is one that can be used: what is missing is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import UsageError
from ..tiers.cuda import Cuda
from .accelerator import Accelerator
from .graphs import CudaGraphs

LEAST = (8, 0)  # compute capability: the first with bfloat16 in its matrix units
INSTEAD = "use --device cpu"


def kernels_run() -> str:
    """Why the project's own kernels cannot run, in a few words; empty: they can, for one did."""
    try:
        from ..kernels.gpu.probe import probe  # only now: it needs Triton
    except ImportError:
        return "Triton is not installed (pip install triton)"
    try:
        probe("cuda")
    except Exception as error:  # noqa: BLE001 - of the compiler, the C compiler, the driver: of any kind
        return f"Triton cannot run its kernels: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return ""


def open_cuda(cuda: Any = torch.cuda, kernels: Callable[[], str] = kernels_run) -> Accelerator:
    """The current CUDA device. UsageError where PyTorch has no CUDA, or no driver, GPU, or too old a one is there.

    Where kernels cannot be compiled, or the driver is too old for them, plain torch does their work, and a note says so."""
    try:
        cuda.init()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0].rstrip(". ") if str(error) else "no reason given"
        raise UsageError(f"--device cuda: there is no usable GPU or driver here ({reason}); {INSTEAD}.") from None
    found = tuple(cuda.get_device_capability())
    if found < LEAST:
        name, has = cuda.get_device_name(), ".".join(map(str, found))
        raise UsageError(f"--device cuda: {name} has compute capability {has}, 8.0 is needed for bfloat16; {INSTEAD}.")
    return Accelerator("cuda", "cuda", Cuda(), graphs=CudaGraphs(), without_triton=kernels())
