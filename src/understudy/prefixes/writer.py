"""A thread that writes files, so that no pass waits for a disk. What it holds is bounded: what does not fit is not taken."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..errors import first_line
from . import ROOM
from .files import PrefixFiles

log = logging.getLogger("understudy.prefixes")

Tensors = Mapping[str, Tensor]


def size_of(tensors: Tensors) -> int:
    """Bytes of tensors that share none."""
    return sum(tensor.nbytes for tensor in tensors.values())


class PrefixWriter:
    """Writes to `files`, one after another. After the first that fails it says why, and takes no more.

    `lost` is told the name of each file that was to be touched and is not there any more."""

    def __init__(self, files: PrefixFiles, room: int = ROOM, lost: Callable[[str], None] = lambda name: None):
        self.files = files
        self.room = room
        self.lost = lost
        # Why nothing more is written; empty while all is well.
        self.fault = ""
        self._jobs: deque[tuple[str, Tensors | None]] = deque()
        # Bytes of tensors in `_jobs`.
        self._held = 0
        self._changed = threading.Condition()
        self._busy = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def takes(self, nbytes: int) -> bool:
        """Is there room for so many bytes now? Something always is taken where nothing waits."""
        with self._changed:
            return not self._held or self._held + nbytes <= self.room

    def write(self, name: str, tensors: Tensors) -> None:
        """Write `tensors`, which nobody changes any more, to the file `name`, soon."""
        with self._changed:
            self._held += size_of(tensors)
            self._add(name, tensors)

    def touch(self, names: Sequence[str]) -> None:
        """Note that files were used, the last one first: what is used first then goes last."""
        with self._changed:
            for name in reversed(names):
                self._add(name, None)

    def flush(self) -> None:
        """Wait until all that was taken is written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._busy)

    def close(self) -> None:
        """Write what was taken, and end. Further calls do nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _add(self, name: str, tensors: Tensors | None) -> None:
        """Queue a job; `_changed` is held."""
        if self._closing:
            return
        self._jobs.append((name, tensors))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="understudy-prefixes", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                name, tensors = self._jobs.popleft()
                self._busy = True
            try:
                self._do(name, tensors)
            finally:
                with self._changed:
                    self._busy = False
                    self._held -= size_of(tensors or {})
                    self._changed.notify_all()

    def _do(self, name: str, tensors: Tensors | None) -> None:
        if tensors is None:
            if not self.files.touch(name):
                self.lost(name)
            return
        if self.fault:
            return
        try:
            self.files.write(name, tensors)
        except OSError as error:
            self.fault = first_line(error)
            where = self.files.directory
            log.warning("--prefix-cache %s cannot be written (%s): no more prefixes are kept there.", where, self.fault)
