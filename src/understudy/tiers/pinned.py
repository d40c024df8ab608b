"""Host memory as a tier for a GPU: all parts are read from disk once, then copied to the device whenever they are asked for.

Copies go through a stream of their own, in the order asked for. Two events per part keep it right: the copy stream waits
for the one recorded at `release` before it overwrites, and the compute stream waits for the copy's before it reads. The
host waits for neither."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..errors import TransferError
from . import Extent, Traffic
from .disk import DiskTier
from .memory import aligned, arena

REGISTERED_AT_ONCE = 256 << 20  # pages pinned per call: a refusal half way leaves the rest usable, only slower


class Device(Protocol):
    """The few things asked of a device; streams and events are whatever the device makes of them."""

    def register(self, memory: Tensor) -> str:
        """Pin host memory so that it is copied at full speed; why not, if not."""
        ...

    def unregister(self, memory: Tensor) -> None: ...

    def copy_stream(self) -> Any:
        """A stream whose work runs beside that of the current one."""
        ...

    def current_stream(self) -> Any:
        """The stream the caller's own work goes to."""
        ...

    def record(self, stream: Any) -> Any:
        """An event that happens when all work given to `stream` so far is done."""
        ...

    def await_event(self, stream: Any, event: Any) -> None:
        """Work given to `stream` from now on begins after `event`. Does not block the host."""
        ...

    def copy(self, stream: Any, source: Tensor, into: Tensor) -> None:
        """Give `stream` the work of copying host bytes to the device."""
        ...

    def happened(self, event: Any) -> bool: ...

    def seconds_between(self, first: Any, last: Any) -> float:
        """Device time between two events that have happened."""
        ...

    def finish(self, stream: Any) -> None:
        """Block the host until `stream` has done all it was given."""
        ...


@dataclass(frozen=True)
class PinnedFetch:
    """A copy under way: from `begun` on the link works for it, with `arrived` its bytes are there."""

    device: Device
    begun: Any
    arrived: Any
    nbytes: int

    def done(self) -> bool:
        return self.device.happened(self.arrived)

    def wait(self) -> None:
        """The caller's stream waits; the host goes on."""
        self.device.await_event(self.device.current_stream(), self.arrived)


class PinnedTier:
    """Extents held in host memory. `block` and `threads` are for reading them from disk, once, before the first fetch.

    `verify(index, bytes)` sees each part as it came from disk, and may raise if it is not what it should be."""

    def __init__(
        self,
        extents: Sequence[Extent],
        *,
        device: Device | None = None,
        verify: Callable[[int, Tensor], None] | None = None,
        block: int = 4 << 20,
        threads: int = 2,
    ) -> None:
        self.extents = tuple(extents)
        self.note = ""
        self._device = device or _cuda()
        self._pinned: list[Tensor] = []
        self._parts: list[Tensor] = []  # whole pages each
        try:
            self._allocate()
            self._fill(verify, block, threads)
        except BaseException:
            self._unpin()
            raise
        self._copies = self._device.copy_stream()
        self._consumed: list[Any] = []  # releases that the copy stream has not been told of
        self._lock = threading.Lock()
        self._under_way: deque[PinnedFetch] = deque()
        self._arrived = Traffic()
        self._closed = False

    @property
    def traffic(self) -> Traffic:
        """What has arrived; its time is the device's own."""
        with self._lock:
            while self._under_way and self._under_way[0].done():
                fetch, before = self._under_way.popleft(), self._arrived
                seconds = before.busy_seconds + self._device.seconds_between(fetch.begun, fetch.arrived)
                self._arrived = Traffic(before.bytes_read + fetch.nbytes, before.reads + 1, seconds)
            return self._arrived

    def fetch(self, index: int, into: Tensor) -> PinnedFetch:
        if self._closed:
            raise TransferError("The weights in host memory are closed: load the model again.")
        for event in self._consumed:
            self._device.await_event(self._copies, event)
        self._consumed.clear()
        nbytes = self.extents[index].nbytes
        begun = self._device.record(self._copies)
        self._device.copy(self._copies, self._parts[index][:nbytes], into[:nbytes])
        fetch = PinnedFetch(self._device, begun, self._device.record(self._copies), nbytes)
        _ = self.traffic  # forget the copies that are over
        self._under_way.append(fetch)
        return fetch

    def release(self) -> None:
        self._consumed.append(self._device.record(self._device.current_stream()))

    def cancel(self) -> None:
        """Copies happen in the order asked for, so an old one cannot overwrite what a later one brings: nothing to do."""

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._device.finish(self._copies)
            self._unpin()

    def _allocate(self) -> None:
        """Host memory in groups of whole parts, so that no copy reaches from one registration into the next."""
        group: list[int] = []
        for extent in self.extents:
            if group and sum(group) + aligned(extent.nbytes) > REGISTERED_AT_ONCE:
                self._allocate_group(group)
                group = []
            group.append(aligned(extent.nbytes))
        self._allocate_group(group)

    def _allocate_group(self, sizes: Sequence[int]) -> None:
        memory = arena(sum(sizes))
        refusal = self.note or self._device.register(memory)
        if refusal:
            self.note = refusal
        else:
            self._pinned.append(memory)
        start = 0
        for size in sizes:
            self._parts.append(memory[start : start + size])
            start += size

    def _fill(self, verify: Callable[[int, Tensor], None] | None, block: int, threads: int) -> None:
        disk = DiskTier(self.extents, block=block, threads=threads)
        try:
            fetches = [disk.fetch(index, part) for index, part in enumerate(self._parts)]
            for index, fetch in enumerate(fetches):
                fetch.wait()
                if verify is not None:
                    verify(index, self._parts[index][: self.extents[index].nbytes])
        finally:
            disk.close()

    def _unpin(self) -> None:
        for memory in self._pinned:
            self._device.unregister(memory)
        self._pinned.clear()
        self._parts.clear()


def _cuda() -> Device:
    from .cuda import Cuda  # only now: this module is for machines without a GPU too

    return Cuda()
