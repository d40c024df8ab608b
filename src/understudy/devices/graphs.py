"""Recorded work: a device does it again as a whole, without the Python that asked for it.

Recorded work must not ask the device for values. From one replay to the next they change only inside tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from ..errors import UnderstudyError, first_line
from ..tiers.cuda_streams import forget_last_error

# torch's own types are incomplete
cuda: Any = torch.cuda
SLOWER = "drafts run without CUDA graphs, which is slower"


class CaptureError(UnderstudyError):
    """Work could not be recorded. It was done once all the same."""


class Graph(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Do the work again, on the current stream. Does not block the host."""
        ...


class Graphs(Protocol):
    """Records work of one device."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Do `work` once, then record it; recording itself changes no tensor. CaptureError where only recording fails."""
        ...

    def beside(self, after: Any) -> AbstractContextManager[object]:
        """A block in which what the calling thread asks of the device is done beside what others ask of it, once the event `after`
        has happened. Nothing may be recorded or replayed elsewhere meanwhile."""
        ...


class CudaGraphs:
    """CUDA graphs. They share one pool of memory, since they run one after another and nothing in it outlives a replay."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None
        self._beside: Any = None

    def capture(self, work: Callable[[], None]) -> Graph:
        if self._pool is None:
            self._pool, self._stream = cuda.graph_pool_handle(), cuda.Stream()
        current = cuda.current_stream()
        self._stream.wait_stream(current)
        # the first time compiles kernels and makes the libraries' workspaces, which must not happen while recording
        with cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)
        graph = cuda.CUDAGraph()
        try:
            # other threads go on copying weights: only the calls of this one are recorded
            with cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            # torch's OutOfMemoryError is one too
            forget_last_error()
            raise CaptureError(failure(error)) from None
        recorded: Graph = graph
        return recorded

    def beside(self, after: Any) -> AbstractContextManager[object]:
        if self._beside is None:
            self._beside = cuda.Stream()
        self._beside.wait_event(after)
        block: AbstractContextManager[object] = cuda.stream(self._beside)
        return block


def failure(error: RuntimeError) -> str:
    """Why recording failed, in one line: the first of the errors that led to `error`."""
    first: BaseException = error
    while first.__context__ is not None:
        first = first.__context__
    return f"{SLOWER} ({first_line(first).split('. ')[0]})"
