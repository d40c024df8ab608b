"""CUDA as the pinned tier sees it: a copy stream, events, and host memory registered with the driver.

Memory is registered and not allocated pinned, since torch's own pinned allocator rounds up to powers of two. Registering is
what touches it first, so that is done next to the device."""

from typing import Any

import torch
from torch import Tensor

from .numa import processors_near, running_on

cuda: Any = torch.cuda  # its own types are incomplete


class CudaStreams:
    """The current CUDA device; see `streams.Streams`."""

    def __init__(self) -> None:
        self._near: frozenset[int] | None = None

    def register(self, memory: Tensor) -> str:
        if self._near is None:
            self._near = processors_near(address(cuda.get_device_properties(cuda.current_device())))
        with running_on(self._near):
            code = int(cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
        if code == 0:
            return ""
        forget_last_error()
        size = memory.numel() >> 20
        return f"the driver refused to pin {size} MiB of host memory (CUDA error {code}): copies to the GPU are slower"

    def unregister(self, memory: Tensor) -> None:
        cuda.cudart().cudaHostUnregister(memory.data_ptr())  # fails where the GPU is lost, and then there is nothing to undo

    def copy_stream(self) -> Any:
        return cuda.Stream()

    def current_stream(self) -> Any:
        return cuda.current_stream()

    def record(self, stream: Any) -> Any:
        event = cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def await_event(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def copy(self, stream: Any, source: Tensor, into: Tensor) -> None:
        with cuda.stream(stream):
            into.copy_(source, non_blocking=True)

    def happened(self, event: Any) -> bool:
        return bool(event.query())

    def block_until(self, event: Any) -> None:
        event.synchronize()

    def seconds_between(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) / 1000

    def finish(self, stream: Any) -> None:
        stream.synchronize()


def address(properties: Any) -> str:
    """Where the device is on the PCI bus, as the kernel names it; empty if torch does not say."""
    numbers = [getattr(properties, f"pci_{name}_id", -1) for name in ("domain", "bus", "device")]
    return "" if -1 in numbers else "{:04x}:{:02x}:{:02x}.0".format(*numbers)


def forget_last_error() -> None:
    """CUDA keeps a failed call's error until the next kernel is checked: let that be this one, not a model's."""
    try:
        torch.zeros(1, device="cuda")
    except RuntimeError:
        return
