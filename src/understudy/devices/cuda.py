"""A CUDA GPU, if there is one that can be used: what is missing is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from subprocess import SubprocessError
from typing import Any

import torch

from ..errors import UsageError, first_line
from ..tiers.cuda_streams import CudaStreams
from .accelerator import Accelerator
from .graphs import CudaGraphs

# Compute capability of the first GPUs with bfloat16 in their matrix units.
LEAST = (8, 0)
# Errors of the driver, of torch without CUDA, of the C compiler that Triton starts, and of the library it makes. Triton's own
# compiler raises another one.
TROUBLE = (RuntimeError, AssertionError, OSError, SubprocessError, ImportError)
INSTEAD = "use --device cpu"


class CudaDevice(Accelerator):
    """GPU `number` of several. Within `at_work` it is the thread's current one."""

    def __init__(self, number: int, cuda: Any, without_triton: str) -> None:
        name = f"cuda:{number}"
        super().__init__(name, name, CudaStreams(), graphs=CudaGraphs(), without_triton=without_triton)
        self.number = number
        self.cuda = cuda

    def at_work(self) -> AbstractContextManager[object]:
        block: AbstractContextManager[object] = self.cuda.device(self.number)
        return block

    def forget(self) -> None:
        with self.at_work():
            self.cuda.empty_cache()


def kernels_run() -> str:
    """Why the project's own kernels cannot run on the current GPU, in a few words; empty: one of them ran."""
    try:
        # only now: it may not be installed
        from triton.errors import TritonError

        from ..kernels.gpu.probe import probe
    except ImportError:
        return "Triton is not installed (pip install triton)"
    try:
        probe("cuda")
    except (TritonError, *TROUBLE) as error:
        return f"Triton cannot run its kernels: {first_line(error)}"
    return ""


def open_cuda(cuda: Any = torch.cuda, kernels: Callable[[], str] = kernels_run, *, number: int | None = None) -> Accelerator:
    """GPU `number`, or the current one. UsageError where PyTorch has no CUDA, or where the driver or GPU is missing or too old.

    Where kernels cannot be compiled, or the driver is too old for them, plain torch does their work, and a note says so."""
    asked = "--device cuda" if number is None else f"cuda:{number}"
    try:
        cuda.init()
    except (RuntimeError, AssertionError) as error:
        # an AssertionError: torch was compiled without CUDA
        reason = first_line(error) if str(error) else "no reason given"
        raise UsageError(f"{asked}: there is no usable GPU or driver here ({reason}); {INSTEAD}.") from None
    if number is not None and number >= (there := int(cuda.device_count())):
        raise UsageError(f"{asked} is not there: this machine has {there} GPU{'s' * (there != 1)}, cuda:0 being the first.")
    with nullcontext() if number is None else cuda.device(number):
        found = tuple(cuda.get_device_capability())
        if found < LEAST:
            name, has = cuda.get_device_name(), ".".join(map(str, found))
            raise UsageError(f"{asked}: {name} has compute capability {has}, 8.0 is needed for bfloat16; {INSTEAD}.")
        if number is not None:
            return CudaDevice(number, cuda, kernels())
        return Accelerator("cuda", "cuda", CudaStreams(), graphs=CudaGraphs(), without_triton=kernels())
