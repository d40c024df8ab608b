"""Host memory as a tier for a GPU, with the disk behind it: parts are copied to the device whenever they are asked for.

Copies go through a stream of their own, in the order asked for. Two events per part keep it right: the copy stream waits
for the one recorded at `release` before it overwrites, and the compute stream waits for the copy's before it reads. The
host waits for neither. What lies in pinned memory is given to the copy stream at once; what does not, because the driver
refused or because it is on disk, goes through a few pinned buffers, by a thread of its own (`staging`)."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import TransferError, UsageError
from . import Extent, Streaming, Traffic
from .disk import DiskTier
from .memory import aligned, arena
from .staging import Staging
from .streams import PinnedFetch, Streams

# pages pinned per call: a refusal half way leaves the rest usable, only slower
REGISTERED_AT_ONCE = 256 << 20
# for what does not lie in pinned memory
BUFFERS = 4
Verify = Callable[[int, Tensor], None]


class PinnedTier:
    """Extents, those in `held` (all, if None) read from disk once and kept in host memory, the others read each time.

    `block`, `threads`, `throttle`: how the disk is read. `verify(index, bytes)` sees each part as it first came from disk,
    and may raise if it is not what it should be. Only the parts in `used` (all, if None) will ever be fetched."""

    checks = True

    def __init__(
        self,
        extents: Sequence[Extent],
        *,
        device: Streams | None = None,
        held: Collection[int] | None = None,
        used: Collection[int] | None = None,
        verify: Verify | None = None,
        block: int = 4 << 20,
        threads: int = 2,
        throttle: float = 0.0,
    ) -> None:
        self.extents = tuple(extents)
        self.note = ""
        self._device = device or _cuda()
        self._registered: list[Tensor] = []
        # parts, whole pages each
        self._pinned: dict[int, Tensor] = {}
        # those the driver refused to pin
        self._plain: dict[int, Tensor] = {}
        self._copies = self._device.copy_stream()
        self._staging: Staging | None = None
        self._disk: DiskTier | None = None
        used = range(len(extents)) if used is None else sorted(used)
        kept = [index for index in used if held is None or index in held]
        try:
            self._allocate(kept)
            self._fill(kept, verify, block, threads)
            late = [index for index in used if index not in self._pinned]
            if late:
                if len(kept) < len(used):
                    self._disk = DiskTier(extents, block=block, threads=threads, throttle=throttle)
                size = max(aligned(extents[index].nbytes) for index in late)
                buffers = self._arenas([size] * BUFFERS, again=True)
                self._staging = Staging(self._device, buffers, self._pinned, self._plain, self._disk, verify)
        except BaseException:
            self._unpin()
            raise
        # releases that the copy stream has not been told of
        self._consumed: list[Any] = []
        self._under_way: deque[PinnedFetch] = deque()
        self._arrived = Traffic()
        self._closed = False

    @property
    def host_bytes(self) -> int:
        """Memory of the host that is held for parts."""
        return sum(part.numel() for parts in (self._pinned, self._plain) for part in parts.values())

    @property
    def traffic(self) -> Traffic:
        """What has arrived; its times are the device's own."""
        while self._under_way and self._under_way[0].done():
            fetch, before = self._under_way.popleft(), self._arrived
            # it failed: what it was to wait for is left to the next
            if fetch.arrived is None:
                self._consumed.extend(fetch.after)
                continue
            self._arrived = replace(
                before,
                bytes_read=before.bytes_read + fetch.nbytes,
                reads=before.reads + 1,
                busy_seconds=before.busy_seconds + self._device.seconds_between(fetch.begun, fetch.arrived),
                waited_seconds=before.waited_seconds + fetch.waited(),
            )
        return self._arrived

    def fetch(self, index: int, into: Tensor) -> PinnedFetch:
        if self._closed:
            raise TransferError("The weights in host memory are closed: load the model again.")
        nbytes = self.extents[index].nbytes
        fetch = PinnedFetch(self._device, self._copies, index, into[:nbytes], tuple(self._consumed))
        self._consumed.clear()
        source = self._pinned.get(index)
        if source is None or (self._staging is not None and self._staging.busy):
            assert self._staging is not None, f"part {index} was not to be used"
            self._staging.submit(fetch)
        else:
            fetch.begin(source)
        # forget the copies that are over
        _ = self.traffic
        self._under_way.append(fetch)
        return fetch

    def release(self) -> None:
        self._consumed.append(self._device.record(self._device.current_stream()))

    def cancel(self) -> None:
        """Copies happen in the order asked for, so an old one cannot overwrite what a later one brings."""
        if self._staging is not None:
            self._staging.cancel()
            never = [fetch for fetch in self._under_way if fetch.arrived is None]
            self._under_way = deque(fetch for fetch in self._under_way if fetch.arrived is not None)
            for fetch in never:
                self._consumed.extend(fetch.after)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._staging is not None:
                self._staging.close()
            if self._disk is not None:
                self._disk.close()
            self._device.finish(self._copies)
            self._unpin()

    def _allocate(self, kept: Sequence[int]) -> None:
        """Host memory in groups of whole parts, so that no copy reaches from one registration into the next."""
        groups: list[list[int]] = [[]]
        room = REGISTERED_AT_ONCE
        for index in kept:
            size = aligned(self.extents[index].nbytes)
            if groups[-1] and size > room:
                groups.append([])
                room = REGISTERED_AT_ONCE
            groups[-1].append(index)
            room -= size
        for group in filter(None, groups):
            parts = self._arenas([aligned(self.extents[index].nbytes) for index in group])
            (self._plain if self.note else self._pinned).update(zip(group, parts, strict=True))

    def _arenas(self, sizes: Sequence[int], again: bool = False) -> list[Tensor]:
        """Memory cut in pieces, pinned unless the driver refuses; it is asked no more once it has, unless `again`."""
        memory = arena(sum(sizes))
        refusal = self._device.register(memory) if again or not self.note else self.note
        self.note = self.note or refusal
        if not refusal:
            self._registered.append(memory)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def _fill(self, kept: Sequence[int], verify: Verify | None, block: int, threads: int) -> None:
        disk = DiskTier([self.extents[index] for index in kept], block=block, threads=threads)
        try:
            parts = [self._pinned.get(index, self._plain.get(index)) for index in kept]
            fetches = [disk.fetch(number, part) for number, part in enumerate(parts) if part is not None]
            for index, part, fetch in zip(kept, parts, fetches, strict=True):
                fetch.wait()
                if verify is not None and part is not None:
                    verify(index, part[: self.extents[index].nbytes])
        finally:
            disk.close()

    def _unpin(self) -> None:
        for memory in self._registered:
            self._device.unregister(memory)
        self._registered.clear()
        self._pinned.clear()
        self._plain.clear()


def open_pinned(streaming: Streaming, streams: Streams | None) -> PinnedTier:
    """See `open_tier`."""
    if streams is None:
        raise UsageError("The tier pinned is host memory behind an accelerator: the processor takes --tier disk.")
    read = streaming.read
    return PinnedTier(
        streaming.extents,
        device=streams,
        held=streaming.held,
        used=streaming.route.parts,
        verify=streaming.check,
        block=read.block,
        threads=read.threads,
        throttle=read.throttle,
    )


def _cuda() -> Streams:
    # only now: this module is for machines without a GPU too
    from .cuda_streams import CudaStreams

    return CudaStreams()
