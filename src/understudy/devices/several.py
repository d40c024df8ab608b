"""Several devices of one kind: what --devices names, and how fast bytes come to all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import signature

from ..errors import UsageError
from ..registry import find, lookup
from . import DEVICES, Device, refuse_host_memory


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
