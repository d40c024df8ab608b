"""Several devices of one kind: what --devices names, how fast bytes come to all of them at once and from one to another, and the
plan of a model over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature

from torch import Tensor

from ..errors import UsageError
from ..plan.demand import MIB, RUNTIME, Footprint, PlanRequest
from ..plan.lanes import LaneRequest, joined, plan_lanes
from ..plan.machine import Machine
from ..plan.placement import BLOCKS, STAGES, Plan
from ..plan.splits import Hop, PassShape, chosen, joined_stages
from ..plan.stages import plan_stages
from ..registry import find, lookup
from . import DEVICES, Device, refuse_host_memory
from .host_memory import host_room

# What is copied to measure how long a state takes from one device to another, and how fast many bytes go. Bytes, and how often.
FEW, MANY, TRIED = 16384, 16 * MIB, 20
# From one device of another machine to the next, which nobody measured: seconds.
ASSUMED = 30e-6


def several(text: str) -> list[tuple[str, int]]:
    """The kind and number of each device that --devices `text` names, as in "cuda:0,cuda:1". Opens none.

    UsageError for fewer than two, for one that is named twice, and for devices of different kinds."""
    named = [_numbered(part.strip()) for part in text.split(",")]
    if len(named) < 2:
        raise UsageError(f"--devices takes two or more, such as cuda:0,cuda:1, got {text!r}: one alone is for --device.")
    twice = next((place for place in named if named.count(place) > 1), None)
    if twice is not None:
        raise UsageError(f"--devices names {twice[0]}:{twice[1]} twice.")
    if len(kinds := dict.fromkeys(kind for kind, _ in named)) > 1:
        raise UsageError(
            f"--devices {text}: {' and '.join(kinds)} differ in kind, and bits would depend on which of them multiplied."
        )
    return named


def _numbered(text: str) -> tuple[str, int]:
    """The kind and number of "kind:number"."""
    kind, _, number = text.partition(":")
    lookup("device", kind, DEVICES)
    if not number.isdecimal():
        raise UsageError(f"--devices takes numbered devices, such as {kind}:0,{kind}:1, got {text!r}.")
    return kind, int(number)


def open_devices(text: str, host_memory: str | int | None = None) -> list[Device]:
    """The devices of --devices `text`, the first in front. UsageError as `several` raises it, and where one cannot be used."""
    named = several(text)
    opener = find("device", DEVICES, named[0][0])
    if "number" not in signature(opener).parameters:
        raise UsageError(f"--devices: there is only one {named[0][0]} device.")
    devices: list[Device] = [opener(number=number) for _, number in named]
    refuse_host_memory(devices[0], host_memory)
    return devices


def links_together(devices: Sequence[Device], disk: float) -> list[float]:
    """Bytes per second at which streamed weights come to each device while they come to all, so that what they share (a
    switch, host memory, a disk) shows; 0: not known. `disk`: the disk's."""
    if not devices[0].own_memory:
        return [device.link_bytes_per_second(disk / len(devices)) for device in devices]

    def measured(device: Device) -> float:
        with device.at_work():
            return device.link_bytes_per_second(disk)

    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(measured, devices))


def hop_between(devices: Sequence[Device], memory: float) -> Hop:
    """How long a state takes from the first device to the others and back, the slowest of them: another thread takes it, as a
    lane's does. `memory`: bytes per second of weights that a device reads; 0: measured, where it can be."""
    first = devices[0]
    if first.where == "meta":
        return Hop(ASSUMED, first.link_bytes_per_second(0.0) or 1e9, memory)
    few, many = (first.arena(nbytes).fill_(1) for nbytes in (FEW, MANY))
    found = []
    for device in devices[1:]:
        with ThreadPoolExecutor(1) as thread:
            there_and_back = partial(_sent, thread, first, device)
            seconds = min(there_and_back(few) for _ in range(TRIED)) / 2
            rate = MANY / max(min(there_and_back(many) for _ in range(3)) / 2 - seconds, 1e-9)
            found.append(Hop(seconds, rate))
    if not memory and first.own_memory:
        twice = first.arena(MANY)
        memory = 2 * MANY / min(_seconds(first, lambda: twice.copy_(many)) for _ in range(3))
    return Hop(max(hop.seconds for hop in found), min(hop.bytes_per_second for hop in found), memory)


def _sent(thread: ThreadPoolExecutor, first: Device, other: Device, given: Tensor) -> float:
    """Seconds in which `given` goes from `first` to `other`, in the thread of that, and back."""

    def there() -> Tensor:
        with other.at_work():
            return given.to(other.where, copy=True)

    return _seconds(first, lambda: thread.submit(there).result().to(first.where, copy=True))


def _seconds(device: Device, do: Callable[[], object]) -> float:
    with device.at_work():
        device.finish()
        began = time.perf_counter()
        do()
        device.finish()
        return time.perf_counter() - began


@dataclass(frozen=True)
class Behind:
    """What lies behind all devices together."""

    # What --host-memory says.
    host_memory: str | int | None
    machine: Machine
    # Bytes per second from the disk; 0: not known.
    disk: float


def plan_over(
    devices: Sequence[Device], budgets: Sequence[int], links: Sequence[float], hop: Hop, split: str,
    footprint: Footprint, request: PlanRequest, behind: Behind,
) -> Plan:  # fmt: skip
    """The plan of a model over `devices`, by blocks or in stages, as `split` says or as is faster. What streams shares host
    memory and the disk. Raises UsageError where it does not fit."""
    first, *further = devices
    lanes = [
        LaneRequest(device.name, budgets[place], device.runtime_bytes if device.own_memory else 0, links[place])
        for place, device in enumerate(further, 1)
    ]

    def placed(plan: Callable[[Footprint, PlanRequest, Sequence[LaneRequest]], Sequence[Plan]]) -> list[Plan]:
        plans = list(plan(footprint, request, lanes))
        plans[0] = replace(plans[0], device=first.name)
        return _behind(devices, plans, behind) if first.own_memory else plans

    ways = {BLOCKS: partial(placed, plan_lanes), STAGES: partial(placed, plan_stages)}
    if request.padded_rows:
        ways.pop(STAGES)
    recorded = first.graphs is not None and bool(request.speeds.draft_levels)
    shape = PassShape(request.rows, footprint.state_line, sum(linear.parts > 1 for linear in footprint.linears), recorded)
    plans, why = chosen(split, ways, shape, hop)
    return (joined if plans[0].split == BLOCKS else joined_stages)(plans).noted(why)


def _behind(devices: Sequence[Device], plans: Sequence[Plan], behind: Behind) -> list[Plan]:
    """`plans` with what comes from the host and what from the disk: each device has as much of the host's memory as streams to
    it."""
    room = host_room(behind.host_memory, behind.machine.memory_limit)
    streamed = max(sum(plan.streamed_bytes for plan in plans), 1)
    return [
        device.behind(plan, RUNTIME + room * plan.streamed_bytes // streamed, behind.machine, behind.disk / len(plans))
        for device, plan in zip(devices, plans, strict=True)
    ]
