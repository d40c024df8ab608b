"""Parts that do not lie in pinned memory: read or moved into a few pinned buffers and copied from there, in the order asked for.

A thread does it, so that nobody else waits for the disk. It reads ahead as far as it has buffers; a buffer is free again
when the copy out of it has happened. While it has work, parts that are pinned queue up behind, so that the order stays."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import TransferError, UnderstudyError, first_line
from .disk import DiskFetch, DiskTier
from .memory import aligned
from .streams import PinnedFetch, Streams

BROKEN = "The copies to the device broke: load the model again."


class Staging:
    """`pinned`, `plain`: parts in host memory; all others are read from `disk`. `verify` sees each of those once."""

    def __init__(
        self,
        device: Streams,
        buffers: Sequence[Tensor],
        pinned: Mapping[int, Tensor],
        plain: Mapping[int, Tensor],
        disk: DiskTier | None,
        verify: Callable[[int, Tensor], None] | None,
    ) -> None:
        self._device, self._pinned, self._plain, self._disk = device, pinned, plain, disk
        self._verify, self._seen = verify, set[int]()
        self._jobs: deque[PinnedFetch] = deque()
        self._free: deque[Tensor] = deque(buffers)
        # buffers, and when what is in them will have been copied
        self._leaving: deque[tuple[Tensor, Any]] = deque()
        self._staged: dict[PinnedFetch, tuple[Tensor, DiskFetch | None]] = {}
        self._changed = threading.Condition()
        self._working = self._closed = False
        # The thread has ended, also where a bug ended it: nothing that is asked for can come.
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="staging", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Something asked for is not with the copy stream yet."""
        with self._changed:
            return self._working or bool(self._jobs)

    def submit(self, fetch: PinnedFetch) -> None:
        with self._changed:
            if self._ended:
                fetch.fail(TransferError(BROKEN))
                return
            self._jobs.append(fetch)
            self._changed.notify_all()

    def cancel(self) -> None:
        """On return, nothing that was asked for before will be given to the copy stream any more."""
        with self._changed:
            for fetch in self._jobs:
                fetch.fail(TransferError("The copy was stopped: ask for it again."))
            self._jobs.clear()
        if self._disk is not None:
            # so that the thread need not wait for it
            self._disk.cancel()
        with self._changed:
            while self._working:
                self._changed.wait()
            if self._disk is not None:
                # what the thread asked for meanwhile: nothing writes to a buffer any more
                self._disk.cancel()
            self._free.extend(buffer for buffer, _ in self._staged.values())
            self._staged.clear()

    def close(self) -> None:
        self.cancel()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while (fetch := self._take()) is not None:
                self._settle(fetch)
        finally:
            with self._changed:
                self._ended = True
                for fetch in self._jobs:
                    fetch.fail(TransferError(BROKEN))
                self._jobs.clear()

    def _settle(self, fetch: PinnedFetch) -> None:
        """Give one copy to the stream, or say in `fetch` why not."""
        try:
            self._look_ahead(fetch)
            if fetch.index in self._pinned:
                fetch.begin(self._pinned[fetch.index])
            else:
                self._bring(fetch)
        except UnderstudyError as error:
            fetch.fail(error)
        except RuntimeError as error:
            # the driver's
            fetch.fail(TransferError(f"A copy to the device failed: {first_line(error)}"))
        finally:
            # of no effect on a fetch that is settled
            fetch.fail(TransferError(BROKEN))
            with self._changed:
                self._working = False
                self._changed.notify_all()

    def _take(self) -> PinnedFetch | None:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return None
            self._working = True
            return self._jobs.popleft()

    def _look_ahead(self, now: PinnedFetch) -> None:
        """Begin to read what comes next, in order, as far as there are buffers; what is to be copied now needs one."""
        with self._changed:
            coming = [now, *self._jobs]
        for fetch in coming:
            if fetch.index in self._pinned:
                continue
            if fetch not in self._staged and not self._stage(fetch, must=fetch is now):
                break

    def _stage(self, fetch: PinnedFetch, must: bool) -> bool:
        """Begin to read a part into a free buffer; whether there was one (`must`: wait until there is)."""
        while self._leaving and (self._device.happened(self._leaving[0][1]) or (must and not self._free)):
            buffer, copied = self._leaving.popleft()
            self._device.block_until(copied)
            self._free.append(buffer)
        if not self._free:
            return False
        buffer = self._free.popleft()
        read = None
        if fetch.index not in self._plain:
            assert self._disk is not None, f"part {fetch.index} is in neither memory nor disk"
            read = self._disk.fetch(fetch.index, buffer[: aligned(fetch.nbytes)])
        self._staged[fetch] = buffer, read
        return True

    def _bring(self, fetch: PinnedFetch) -> None:
        buffer, read = self._staged.pop(fetch)
        copied = None
        try:
            if read is None:
                buffer[: fetch.nbytes].copy_(self._plain[fetch.index][: fetch.nbytes])
            else:
                read.wait()
                if self._verify is not None and fetch.index not in self._seen:
                    self._verify(fetch.index, buffer[: fetch.nbytes])
                    self._seen.add(fetch.index)
            fetch.begin(buffer)
            copied = fetch.arrived
        finally:
            if copied is None:
                self._free.append(buffer)
            else:
                self._leaving.append((buffer, copied))
