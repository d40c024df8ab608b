"""Work that is recorded once and then given to a device again as a whole, without any of the Python that made it.

What is recorded must not ask the device for anything: values may change from one replay to the next only inside tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..errors import UnderstudyError, first_line
from ..tiers.cuda import forget_last_error

cuda: Any = torch.cuda  # its own types are incomplete
SLOWER = "drafts run without CUDA graphs, which is slower"


class CaptureError(UnderstudyError):
    """Work could not be recorded. It has been done once, though."""


class Graph(Protocol):
    def replay(self) -> None:
        """Do the work again, on the current stream. Does not block the host."""
        ...


class Graphs(Protocol):
    def capture(self, work: Callable[[], None]) -> Graph:
        """Do `work` once for real, then record it; recording changes nothing. CaptureError if only recording fails."""
        ...


class CudaGraphs:
    """All graphs share one pool of memory: they run one after another, and nothing in it outlives a replay."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None

    def capture(self, work: Callable[[], None]) -> Graph:
        if self._pool is None:
            self._pool, self._stream = cuda.graph_pool_handle(), cuda.Stream()
        current = cuda.current_stream()
        self._stream.wait_stream(current)
        with cuda.stream(self._stream):  # compiles kernels and makes the libraries' workspaces, which recording must not
            work()
        current.wait_stream(self._stream)
        graph = cuda.CUDAGraph()
        try:  # other threads go on copying weights meanwhile: only this thread's calls matter
            with cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:  # torch's OutOfMemoryError is one
            forget_last_error()
            raise CaptureError(failure(error)) from None
        recorded: Graph = graph
        return recorded


def failure(error: RuntimeError) -> str:
    """In one line; of errors that follow from one another, the first."""
    first: BaseException = error
    while first.__context__ is not None:
        first = first.__context__
    return f"{SLOWER} ({first_line(first).split('. ')[0]})"
