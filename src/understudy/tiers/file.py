"""One file read past the page cache where the file system allows, and through it (told to forget) where not."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import TransferError
from . import Extent
from .memory import ALIGNMENT, arena

REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


class File:
    """An open file. `direct` says whether reads go past the page cache; if they do not, `note` says why."""

    def __init__(self, path: Path, direct: bool = True) -> None:
        self.path = path
        self.note = "" if direct else f"{path} is read through the page cache, as asked"
        try:
            self._descriptor, self.direct = _open(path, direct)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise TransferError(f"Cannot open {path}: {error.strerror}. Prepare the model again.") from error
        if direct and not self.direct:
            self.note = f"{path}: the file system refuses direct I/O, so reads go through the page cache"

    def close(self) -> None:
        os.close(self._descriptor)

    def require(self, extent: Extent) -> None:
        """TransferError unless the file is long enough to hold `extent`."""
        if extent.offset + extent.nbytes > self.size:
            self._short(extent.offset, extent.nbytes, max(0, self.size - extent.offset))

    def read(self, offset: int, buffers: Sequence[memoryview], needed: int) -> None:
        """Fill `buffers`, one after another, from `offset` on; at least the first `needed` bytes of them.

        Offset and buffers are whole pages: the pages may reach past the end of the file, `needed` must not."""
        got = 0
        while got < needed:
            # direct reads start on a page: a page partly read is read again
            start = got // ALIGNMENT * ALIGNMENT
            try:
                came = os.preadv(self._descriptor, _from(buffers, start), offset + start)
            except OSError as error:
                what = f"Reading {needed} bytes at {offset} of {self.path} failed: {error.strerror}."
                raise TransferError(f"{what} Check the disk, then try again.") from error
            if start + came <= got:
                self._short(offset, needed, got)
            got = start + came
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, got, os.POSIX_FADV_DONTNEED)

    def _short(self, offset: int, wanted: int, got: int) -> NoReturn:
        what = f"{self.path} is too short: wanted {wanted} bytes at {offset}, got {got}."
        raise TransferError(f"{what} Delete its directory and prepare the model again.")


def _from(buffers: Sequence[memoryview], start: int) -> list[memoryview]:
    """What is left of `buffers` after their first `start` bytes."""
    left = []
    for buffer in buffers:
        if start < len(buffer):
            left.append(buffer[start:])
        start = max(0, start - len(buffer))
    return left


def _open(path: Path, direct: bool) -> tuple[int, bool]:
    """A descriptor, and whether it reads directly. A file system refuses that at open or only at the first read."""
    if direct and hasattr(os, "O_DIRECT"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
        else:
            try:
                os.preadv(descriptor, [arena(ALIGNMENT).numpy().data], 0)
                return descriptor, True
            except OSError as error:
                os.close(descriptor)
                if error.errno not in REFUSALS:
                    raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
