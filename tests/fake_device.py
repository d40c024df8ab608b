"""An accelerator that is not there, for the whole way of a token: its tensors lie on the CPU, its kernels run in Triton's
interpreter, its copies are done late and in an order that chance decides, and its memory holds garbage at first."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tests.fake_graphs import FakeGraphs
from tests.interpreter import quicken
from tests.simulated import Event, SimulatedDevice, Stream
from understudy.devices import RowProduct, TokenChooser
from understudy.devices.accelerator import Accelerator
from understudy.kernels.attention import AttentionSpec, attend
from understudy.kernels.expert_kernels import ExpertKernels
from understudy.tree import Nodes

GIB = 1 << 30
Kernel = TypeVar("Kernel", bound=Callable[..., Any])
# Triton's interpreter is for one thread at a time, whatever the number of devices.
INTERPRETER = threading.RLock()


class Inline(SimulatedDevice):
    """The host's own work is done at once, as tensors on the CPU do it; only copies are late."""

    def record(self, stream: Stream) -> Event:
        event = super().record(stream)
        if stream is self.compute:
            self.block_until(event)
            event.seconds = time.perf_counter()
        return event

    def await_event(self, stream: Stream, event: Event) -> None:
        if stream is self.compute:
            self.block_until(event)
        else:
            super().await_event(stream, event)

    def seconds_between(self, first: Event, last: Event) -> float:
        if first.seconds and last.seconds:  # of the host's own work: what it really took
            return last.seconds - first.seconds
        return 1e-6 * super().seconds_between(first, last)


class LockedExperts:
    """Kernels of experts for one thread at a time."""

    def __init__(self, kernels: ExpertKernels) -> None:
        self.decide = _one_at_a_time(kernels.decide)
        self.places = _one_at_a_time(kernels.places)
        self.multiply = _one_at_a_time(kernels.multiply)
        self.add = _one_at_a_time(kernels.add)


class FakeDevice(Accelerator):
    """`capacity`: bytes of memory it has. Its kernels run in an interpreter, so that each node of a pass costs much."""

    nodes_are_free = False

    def __init__(
        self, *, seed: int = 0, capacity: int = 4 * GIB, triton: bool = True, refuse_after: int = 1000, name: str = "fake"
    ):
        if triton:
            quicken()
        self.simulated = Inline(seed, refuse_after)
        super().__init__(name, "cpu", self.simulated, without_triton="" if triton else "Triton is not installed")
        # `taken`: bytes that somebody else holds.
        self.capacity, self.taken = capacity, 0
        self.arenas: list[tuple[StorageWeakRef, int]] = []
        self.recorder = FakeGraphs(guard=INTERPRETER)
        self.graphs = self.recorder if self.triton else None

    @property
    def held(self) -> int:
        """Bytes that are not given back: whose tensors still are."""
        self.arenas = [(storage, nbytes) for storage, nbytes in self.arenas if not storage.expired()]
        return self.taken + sum(nbytes for _, nbytes in self.arenas)

    def memory(self) -> tuple[int, int]:
        return self.capacity - self.held, self.capacity

    def forget(self) -> None: ...

    def peak_bytes(self) -> int:
        return self.held

    def link_bytes_per_second(self, disk: float) -> float:
        return 1e9

    def arena(self, nbytes: int) -> Tensor:
        if self.held + nbytes > self.capacity:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {nbytes >> 20} MiB.")
        made = super().arena(nbytes).fill_(0xFF)
        self.arenas.append((StorageWeakRef(made.untyped_storage()), nbytes))
        return made

    def row_product(self) -> RowProduct | None:
        return _one_at_a_time(super().row_product())

    def expert_kernels(self) -> ExpertKernels | None:
        kernels = super().expert_kernels()
        return None if kernels is None else LockedExperts(kernels)

    def token_chooser(self) -> TokenChooser | None:
        return _one_at_a_time(super().token_chooser())

    def attend(self, *given: Any) -> Tensor:
        with INTERPRETER:
            return super().attend(*given)

    def convolve(self, *given: Any) -> Tensor:
        with INTERPRETER:
            return super().convolve(*given)

    def recur(self, *given: Any, **options: Any) -> Tensor:
        with INTERPRETER:
            return super().recur(*given, **options)

    def fold(self, *given: Any) -> None:
        with INTERPRETER:
            super().fold(*given)

    def decode(self, *given: Any, **options: Any) -> Tensor:
        with INTERPRETER:
            return super().decode(*given, **options)

    def landing(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), 0xFF, dtype=torch.uint8)

    def late(self, source: Tensor, into: Tensor) -> Event:
        """Comes in two halves, some time after it was asked for."""
        flat = source.clone().view(-1).view(torch.uint8)
        self.simulated.copy(self.simulated.copies, flat, into.view(-1).view(torch.uint8))
        event = self.simulated.record(self.simulated.copies)
        event.seconds = time.perf_counter()
        return event


def _one_at_a_time(kernel: Kernel | None) -> Kernel | None:
    def run(*given: Any) -> Any:
        assert kernel is not None
        with INTERPRETER:
            return kernel(*given)

    return None if kernel is None else cast(Kernel, run)


def one_by_one(x: Tensor, blocks: Tensor, out: Tensor) -> None:
    for row, place in zip(x, out, strict=True):
        place.copy_(torch.einsum("k,bkj->bj", row.float(), blocks.float()))


class RowDevice(FakeDevice):
    """A device without Triton that multiplies and attends row by row, and sums a row as a GPU does: a matrix of few rows in another
    order."""

    def __init__(self, *, seed: int = 0, name: str = "fake") -> None:
        super().__init__(seed=seed, triton=False, name=name)

    def row_product(self) -> RowProduct | None:
        return one_by_one

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
        return attend(query, keys, values, nodes, spec)


def open_fake() -> FakeDevice:
    return FakeDevice(seed=random.Random(time.time_ns()).randrange(1000))


def without_triton() -> FakeDevice:
    return FakeDevice(triton=False)
