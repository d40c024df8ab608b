"""What a container may use: the limits of the control groups this process is in, version 1 and 2, nested.

A limit binds everything below it, so every ancestor counts and the tightest one holds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60  # version 1 writes "no limit" as the largest number of whole pages


@dataclass(frozen=True)
class MemoryLimit:
    """A group's ceiling and what its processes hold now, in bytes."""

    limit: int
    # Without the file cache that the kernel would drop first.
    held: int
    # Without any of the file cache: what the kernel cannot take back.
    kept: int


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Those of every group around this process that has one."""
    found = []
    for group, version in _groups("memory", root):
        limit = _number(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if limit is None or limit >= UNLIMITED:
            continue
        used = _number(group / ("memory.current" if version == 2 else "memory.usage_in_bytes")) or 0
        total = "" if version == 2 else "total_"
        held = max(0, used - _cached(group, f"{total}inactive_file"))
        found.append(MemoryLimit(limit, held, max(0, held - _cached(group, f"{total}active_file"))))
    return found


def cpu_limit(root: Path = Path("/")) -> float | None:
    """Processors' worth of time this process may use, or None for all there are."""
    limits = []
    for group, version in _groups("cpu", root):
        if version == 2:
            quota, period = (*_words(group / "cpu.max"), "", "")[:2]
        else:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # "max" in version 2, -1 in version 1: no limit
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Directory and version of this process's group and of its ancestors, as far up as this system shows them."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and controller not in controllers.split(","):
            continue
        for mount, base in _mounts(controller, version, root):
            inside = Path(path).relative_to(base) if Path(path).is_relative_to(base) else Path()
            group = mount / inside
            while not group.is_dir() and group != mount:
                group = group.parent
            yield group, version
            yield from ((parent, version) for parent in group.parents if parent.is_relative_to(mount))


def _mounts(controller: str, version: int, root: Path) -> Iterator[tuple[Path, str]]:
    """Where the controller's hierarchy is mounted, and which group of it the mount shows as its top."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, filesystem = line.partition(" - ")
        kind, _, options = (*filesystem.split(" "), "", "", "")[:3]
        if kind == ("cgroup2" if version == 2 else "cgroup") and (version == 2 or controller in options.split(",")):
            base, mount = (_unescaped(field) for field in fields.split(" ")[3:5])
            yield root / mount.lstrip("/"), base


def _unescaped(field: str) -> str:
    """mountinfo writes blanks as octal: \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _cached(group: Path, key: str) -> int:
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    """What a kernel file says; nothing where this system has no such file."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return ""
