"""What this machine has and how fast it is: memory this process may use, processors, GPU, disk.

Container limits count as much as hardware. What has to be measured is measured once per directory and remembered."""

import os
import platform
import resource
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from ..errors import UsageError
from ..tiers import DiskProbe
from .cgroup import cpu_limit, memory_limits
from .remembered import recall, remember
from .sizes import format_size, parse_size, whole_mib

__all__ = ["Gpu", "Machine", "format_size", "free_bytes", "memory_limit", "parse_size", "peak_memory_bytes"]


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees. Sizes in bytes."""

    name: str
    total_memory: int
    free_memory: int


@dataclass(frozen=True)
class MeasuredSpeeds:
    """What has to be measured, once for each directory."""

    disk: DiskProbe
    # Bytes per second.
    memory_bandwidth: float


@dataclass(frozen=True)
class Machine:
    """What this process can use. `doctor --json` shows these names."""

    # The processor's name.
    cpu: str
    # Processors that this process may keep busy.
    cores: int
    # Bytes of memory in all.
    total_memory: int
    # The most bytes that this process could hold now.
    memory_limit: int
    gpu: Gpu | None = None
    # The disk that a file is on; None until `measured`.
    disk: DiskProbe | None = None
    # Bytes per second; None until `measured`.
    memory_bandwidth: float | None = None

    @classmethod
    def inspect(cls) -> "Machine":
        """All that can be known without measuring."""
        return cls(_cpu_name(), cores(), psutil.virtual_memory().total, memory_limit(), _gpu())

    @property
    def unused_gpu(self) -> str:
        """What to say where the processor was not asked for, and runs the model all the same; empty where there is no GPU."""
        return "" if self.gpu is None else f"{self.gpu.name} is not used: --device cuda runs the model on it"

    def measured(self, file: Path, cache: Path, *, again: bool = False) -> "Machine":
        """With the speeds of memory and of the disk of `file`: remembered in `cache` by its directory, or measured."""
        key = f"{file.resolve().parent} on {self.cpu}"
        known = recall(cache / "machine.json", _speeds)
        if again or key not in known:
            from ..tiers import probe  # torch: not for those who only ask for a size

            # The speed of memory is the same for every directory, and measuring it takes room.
            same = [speeds.memory_bandwidth for name, speeds in known.items() if name.endswith(f" on {self.cpu}")]
            bandwidth = probe.probe_memory() if again or not same else same[-1]
            near = None if again or file.stat().st_size > probe.SMALL else self._near(file, known)
            known[key] = MeasuredSpeeds(near or probe.probe_disk(file), bandwidth)
            remember(cache / "machine.json", known)
        return replace(self, disk=known[key].disk, memory_bandwidth=known[key].memory_bandwidth)

    def _near(self, file: Path, known: "dict[str, MeasuredSpeeds]") -> DiskProbe | None:
        """The disk under `file` as it was measured for another directory on it; None where it was not."""
        mine = f" on {self.cpu}"
        places = [(Path(name.removesuffix(mine)), speeds.disk) for name, speeds in known.items() if name.endswith(mine)]
        device = file.stat().st_dev
        return next((disk for place, disk in places if place.is_dir() and place.stat().st_dev == device), None)

    @property
    def link_bandwidth(self) -> float:
        """Bytes per second from where the weights are kept."""
        assert self.disk is not None, "the disk of this machine was not measured"
        return self.disk.bytes_per_second

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def memory_limit(root: Path = Path("/")) -> int:
    """The most this process could hold: what it holds, and what machine and control groups would still let it have."""
    rss = resident_bytes()
    groups = [group.limit - group.held for group in memory_limits(root)]
    return int(rss + max(0, min([psutil.virtual_memory().available, *groups])))


def spare_bytes(root: Path = Path("/")) -> int:
    """The most that this process could hold beyond what it holds, where the kernel gives up all of the file cache that it can."""
    groups = [group.limit - group.kept for group in memory_limits(root)]
    return int(max(0, min([psutil.virtual_memory().available, *groups])))


def check_spare(needed: int, what: str, advice: str = "end other programs, or give it more memory") -> None:
    """Raise UsageError unless this process can hold `needed` bytes beyond what it holds, which `what` takes at most."""
    if (spare := spare_bytes()) < needed:
        raise UsageError(
            f"{what} takes up to {whole_mib(needed)} beside what this process holds, and {format_size(spare)} is free: {advice}."
        )


def resident_bytes() -> int:
    """The memory this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int:
    """The most memory this process has held at once."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cores(root: Path = Path("/")) -> int:
    """Processors this process may keep busy."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = cpu_limit(root)
    return allowed if quota is None else max(1, min(allowed, round(quota)))


def free_bytes(directory: Path) -> int:
    """Room left where `directory` is or would be made."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> Gpu | None:
    import torch  # here, since it takes a second and most of this module does without

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Gpu(torch.cuda.get_device_name(), total, free)


def _speeds(fields: dict[str, Any]) -> MeasuredSpeeds:
    """Speeds as they were written. Raises TypeError and KeyError for what is not of this form."""
    return MeasuredSpeeds(DiskProbe(**fields["disk"]), float(fields["memory_bandwidth"]))
