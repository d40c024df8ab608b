"""A machine that is not this one, as a person describes it, so that a plan can be made for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..registry import lookup
from ..tiers import DiskProbe
from .machine import Gpu, Machine
from .sizes import format_size, parse_size

FORM = "DEVICE:memory=SIZE,NAME=VALUE,..., such as cuda:memory=24GB,link=25GB/s or cpu:memory=16GB,disk=3.5GB/s"
SIZES = ("memory", "host")
SPEEDS = ("link", "disk", "bandwidth")
# Bytes per second of memory that are taken where nobody says them: two channels of DDR5, and a mid-range GPU.
BANDWIDTHS = {"cpu": 60 * 10**9, "cuda": 450 * 10**9}
# Host memory that is taken where nobody says it, as a multiple of the memory of the accelerator.
HOST_TIMES = 2


@dataclass(frozen=True)
class OtherMachine:
    """What `plan --for` describes. Sizes are bytes, speeds bytes per second."""

    # The device that computes: cpu or cuda.
    device: str
    # Memory of the device.
    memory: int
    # From host memory to an accelerator; 0 on a processor.
    link: int
    # From the disk that holds the weights; 0: not known.
    disk: int
    # Memory of the host: on a processor the same as `memory`.
    host: int
    # How fast the device reads its own memory.
    bandwidth: int
    # What was not said and is taken, in words; empty: all was said.
    assumed: str

    @classmethod
    def parse(cls, text: str) -> OtherMachine:
        """The machine that `text` describes in the form FORM. Raises UsageError where it does not."""
        device, _, rest = text.partition(":")
        lookup("device", device, BANDWIDTHS)
        values = _values(rest)
        needed = ("memory", "link") if device == "cuda" else ("memory", "disk")
        missing = [name for name in needed if name not in values]
        if missing:
            raise UsageError(f"--for {text}: {' and '.join(missing)} must be given: {FORM}.")
        if device == "cpu" and (wrong := [name for name in ("link", "host") if name in values]):
            raise UsageError(f"--for {text}: {wrong[0]} is for an accelerator; a processor has memory and disk.")
        memory = values["memory"]
        host = values.get("host", memory * HOST_TIMES) if device == "cuda" else memory
        bandwidth = values.get("bandwidth", BANDWIDTHS[device])
        assumed = [f"memory that is read at {bandwidth / 1e9:.0f} GB/s (bandwidth=)"] if "bandwidth" not in values else []
        if device == "cuda" and "host" not in values:
            assumed.append(f"{format_size(host)} of host memory (host=)")
        return cls(device, memory, values.get("link", 0), values.get("disk", 0), host, bandwidth, " and ".join(assumed))

    def machine(self) -> Machine:
        """The same as `Machine.inspect` would find there."""
        gpu = Gpu(self.device, self.memory, self.memory) if self.device == "cuda" else None
        disk = DiskProbe(float(self.disk), block=0, threads=0, direct=True, note="") if self.disk else None
        return Machine("", 1, self.host, self.host, gpu, disk, float(self.bandwidth))

    @property
    def note(self) -> str:
        """What a reader of the plan must know."""
        taken = f" taken: {self.assumed};" if self.assumed else ""
        return f"for another machine:{taken} its arithmetic is not known, so real speeds are lower"


def _values(text: str) -> Mapping[str, int]:
    """The numbers in "name=value,...", each above 0. Raises UsageError for an unknown name or a value that is no number."""
    values: dict[str, int] = {}
    for pair in filter(None, text.split(",")):
        name, equals, value = pair.partition("=")
        known: dict[str, Any] = dict.fromkeys((*SIZES, *SPEEDS), "")
        lookup("value of --for", name, known)
        if not equals or name in values:
            raise UsageError(f"--for: {name} must be given once, as {name}=VALUE: {FORM}.")
        values[name] = parse_size(value.removesuffix("/s") if name in SPEEDS else value, name)
        if values[name] <= 0:
            raise UsageError(f"--for: {name} must be more than 0.")
    return values
