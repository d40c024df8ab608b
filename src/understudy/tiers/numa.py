"""Host memory near a device. In a machine with more than one socket, a page of memory lies at the socket whose
processor touches it first, and copies from there to a device at another socket share the connection between the
two."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
NODES = Path("/sys/devices/system/node")


def processors_near(address: str, devices: Path = PCI) -> frozenset[int]:
    """The processors next to the PCI device at `address` ("0000:65:00.0"); empty where the kernel does not say."""
    try:
        return _processors((devices / address / "local_cpulist").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return frozenset()


def processors_by_node(nodes: Path | None = None) -> dict[int, frozenset[int]]:
    """The processors that this process may run on, by NUMA node; all of them in node 0 where the kernel does not say."""
    allowed = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset(range(os.cpu_count() or 1))
    found: dict[int, frozenset[int]] = {}
    with suppress(OSError, ValueError):
        for node in (nodes or NODES).glob("node[0-9]*"):
            here = allowed & _processors((node / "cpulist").read_text(encoding="ascii"))
            if here:
                found[int(node.name.removeprefix("node"))] = here
    return found or {0: allowed}


def _processors(text: str) -> frozenset[int]:
    """The processors in the kernel's "0-3,8". Raises ValueError for anything else."""
    spans = [span.partition("-") for span in text.strip().split(",") if span]
    return frozenset(cpu for low, _, high in spans for cpu in range(int(low), int(high or low) + 1))


@contextmanager
def running_on(cpus: Collection[int], within: Collection[int] | None = None) -> Iterator[None]:
    """Pin this thread to `cpus` inside the block, where it is allowed to run on any of them. `within`: processors that this process
    may run on; None: those that the thread is pinned to now, or was before it started this one."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    wanted = (allowed if within is None else set(within)) & set(cpus)
    if not allowed or not wanted or wanted == allowed:
        yield
        return
    # The process may have lost those processors.
    with suppress(OSError):
        os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        # As above, inside the block.
        with suppress(OSError):
            os.sched_setaffinity(0, allowed)
