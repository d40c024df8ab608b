"""Devices of a machine that is not this one: they tell what a plan asks, and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..codecs import Codec
from ..errors import UsageError
from ..plan.machine import Machine
from ..plan.other_machine import OtherMachine
from ..plan.sizes import format_size, parse_size
from ..tiers.cuda_streams import CudaStreams
from . import Device, refuse_host_memory
from .accelerator import Accelerator
from .graphs import CudaGraphs
from .processor import Processor


class DistantProcessor(Processor):
    """The processor of another machine."""

    def budget(self, asked: str | int | None, machine: Machine) -> int:
        """UsageError where more is asked for than the machine has."""
        return _within(super().budget(asked, machine), machine.total_memory)

    def seconds_a_weight(self, codec: Codec, quantizer: str, dtype: torch.dtype) -> float:
        """Not known: the link is taken to be slower."""
        return 0.0


class DistantAccelerator(Accelerator):
    """An accelerator of another machine, with all of its memory free and kernels that run."""

    def __init__(self, other: OtherMachine, name: str) -> None:
        super().__init__(name, "meta", CudaStreams(), graphs=CudaGraphs())
        self.other = other

    def memory(self) -> tuple[int, int]:
        return self.other.memory, self.other.memory

    def link_bytes_per_second(self, disk: float) -> float:
        return float(self.other.link)

    def memory_bytes_per_second(self, machine: Machine) -> float:
        return float(self.other.bandwidth)


def devices_of(other: OtherMachine, host_memory: str | int | None, numbers: Sequence[int] = ()) -> list[Device]:
    """The devices of `other` with these numbers, all alike; the only one where there are none.

    UsageError for more `host_memory` than it has, or behind a processor, and for several processors."""
    if other.device == "cpu":
        processor = DistantProcessor()
        refuse_host_memory(processor, host_memory)
        if numbers:
            raise UsageError("--for cpu describes one processor: leave --devices out.")
        return [processor]
    if host_memory is not None:
        _within(parse_size(host_memory), other.host)
    names = [f"{other.device}:{number}" for number in numbers] or [other.device]
    return [DistantAccelerator(other, name) for name in names]


def _within(wanted: int, there: int) -> int:
    if wanted > there:
        raise UsageError(f"{format_size(wanted)} is more than the {format_size(there)} of the machine that --for describes.")
    return wanted
