"""The disk as a tier: reader threads take blocks from one queue, so what was asked for first is complete first.

Reads go past the page cache (O_DIRECT) into aligned memory. Where the file system refuses, they go through the cache,
which is told to forget them, and `note` says so."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import TransferError, UsageError
from . import Extent, Streaming, Traffic
from .file import File
from .memory import ALIGNMENT, aligned
from .meter import Meter, Throttle
from .streams import Streams

# buffers of one read; Linux takes up to 1024
MOST_BUFFERS = 256


class DiskFetch:
    """An extent on its way, in `blocks` blocks: complete when each of them is read or has failed."""

    def __init__(self, blocks: int) -> None:
        self._left = blocks
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._error: TransferError | None = None
        if blocks == 0:
            self._finished.set()

    def block_done(self, error: TransferError | None = None) -> None:
        """One more block is read, or failed with `error`; the first error is the one that `wait` raises."""
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            if self._left == 0:
                self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def wait(self) -> None:
        self._finished.wait()
        if self._error is not None:
            raise TransferError(str(self._error))


@dataclass(frozen=True)
class _Block:
    """One read that was asked for."""

    # the fetch it is part of
    fetch: DiskFetch
    path: Path
    # bytes from the start of the file, a whole page
    offset: int
    # bytes that must be read
    needed: int
    # whole pages to fill, which may reach past the end of the file
    into: memoryview


class DiskTier:
    """Extents of files, read by `threads` threads, `block` bytes a read; `throttle`: most bytes per second, 0: no limit.

    TransferError where a file cannot be opened or is too short for its extents."""

    checks = False

    def __init__(
        self,
        extents: Sequence[Extent],
        *,
        block: int = 4 << 20,
        threads: int = 2,
        throttle: float = 0.0,
        direct: bool = True,
    ) -> None:
        assert block > 0 and block % ALIGNMENT == 0 and threads > 0, f"blocks of {block} bytes, {threads} threads"
        for extent in extents:
            assert extent.offset % ALIGNMENT == 0, f"{extent} is not aligned to {ALIGNMENT}"
        self.extents = tuple(extents)
        self.block = block
        self._files: dict[Path, File] = {}
        self._queue: deque[_Block] = deque()
        self._changed = threading.Condition()
        self._closed = False
        # a bug ended a thread: nothing more is read
        self._broken = False
        # threads in the middle of a read
        self._reading = 0
        self._meter = Meter()
        self._throttle = Throttle(throttle)
        try:
            self._open(direct)
        except TransferError:
            self._close_files()
            raise
        self.direct = all(file.direct for file in self._files.values())
        self.note = "; ".join(file.note for file in self._files.values() if file.note)
        self._threads = [threading.Thread(target=self._serve, name=f"disk-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def traffic(self) -> Traffic:
        return self._meter.traffic

    def fetch(self, index: int, into: Tensor) -> DiskFetch:
        return self.read(self.extents[index], into)

    def read(self, extent: Extent, into: Tensor) -> DiskFetch:
        """Begin to fill `into` with `extent`, which lies in one of the extents."""
        assert into.numel() >= aligned(extent.nbytes), f"{into.numel()} bytes of room for {extent.nbytes}"
        assert into.data_ptr() % ALIGNMENT == 0, f"a slot at {into.data_ptr():#x} is not aligned to {ALIGNMENT}"
        room = into.numpy().data
        fetch = DiskFetch(-(-extent.nbytes // self.block))
        blocks = []
        for start in range(0, extent.nbytes, self.block):
            needed = min(self.block, extent.nbytes - start)
            into_block = room[start : start + aligned(needed)]
            blocks.append(_Block(fetch, extent.path, extent.offset + start, needed, into_block))
        with self._changed:
            if self._closed:
                raise TransferError(f"The weights in {extent.path} are closed: load the model again.")
            if self._broken:
                raise _broke(extent.path)
            self._queue.extend(blocks)
            self._changed.notify(len(blocks))
        return fetch

    def release(self) -> None:
        """A use of fetched bytes on the CPU is over when this is called: nothing to wait for."""

    def cancel(self) -> None:
        with self._changed:
            left = list(self._queue)
            self._queue.clear()
            for block in left:
                block.fetch.block_done(TransferError(f"Reading {block.path} was stopped: ask for it again."))
            while self._reading:
                self._changed.wait()

    def close(self) -> None:
        with self._changed:
            self._closed = True
        self.cancel()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._close_files()

    def _open(self, direct: bool) -> None:
        for extent in self.extents:
            if extent.path not in self._files:
                self._files[extent.path] = File(extent.path, direct)
            self._files[extent.path].require(extent)

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _serve(self) -> None:
        whole = False
        try:
            while blocks := self._take():
                self._settle(blocks)
            whole = True
        finally:
            if not whole:
                with self._changed:
                    self._broken = True
                    for block in self._queue:
                        block.fetch.block_done(_broke(block.path))
                    self._queue.clear()

    def _settle(self, blocks: Sequence[_Block]) -> None:
        """Read `blocks` in one read, or say in their fetches why not."""
        error: TransferError | None = _broke(blocks[0].path)
        try:
            with self._meter:
                self._read(blocks)
            error = None
        except TransferError as failure:
            error = failure
        finally:
            self._finish(blocks, error)

    def _finish(self, blocks: Sequence[_Block], error: TransferError | None) -> None:
        for block in blocks:
            block.fetch.block_done(error)
        with self._changed:
            self._reading -= 1
            if self._reading == 0:
                self._changed.notify_all()

    def _read(self, blocks: Sequence[_Block]) -> None:
        needed = sum(len(block.into) for block in blocks[:-1]) + blocks[-1].needed
        self._throttle.await_turn(needed)
        self._files[blocks[0].path].read(blocks[0].offset, [block.into for block in blocks], needed)
        self._meter.count(sum(block.needed for block in blocks))

    def _take(self) -> list[_Block]:
        """The oldest block, with those queued behind it that follow it in the file: one read. None when closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            taken: list[_Block] = []
            room = self.block
            while self._queue and len(taken) < MOST_BUFFERS and self._queue[0].needed <= room:
                if taken and not _follows(taken[-1], self._queue[0]):
                    break
                taken.append(self._queue.popleft())
                room -= len(taken[-1].into)
            self._reading += bool(taken)
            return taken


def _broke(path: Path) -> TransferError:
    return TransferError(f"The reader of {path} broke: load the model again.")


def _follows(block: _Block, after: _Block) -> bool:
    """Whether `after` begins in the file where the room of `block` ends."""
    return after.path == block.path and after.offset == block.offset + len(block.into)


def open_disk(streaming: Streaming, streams: Streams | None) -> DiskTier:
    """See `open_tier`."""
    if streams is not None:
        raise UsageError("The tier disk brings weights to the processor's memory alone: use --tier pinned for this device.")
    read = streaming.read
    return DiskTier(streaming.extents, block=read.block, threads=read.threads, throttle=read.throttle)
