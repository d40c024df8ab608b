"""A temporary file for what outgrows fast memory: written and read in whole pages past the page cache, gone when it is closed or
the process ends, however that comes.

All of it is taken from the disk at once, so that a disk that is full is found before anything is computed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import TransferError, UsageError
from . import Extent, ReadSettings, Traffic
from .disk import DiskFetch, DiskTier
from .memory import ALIGNMENT, aligned, arena

MIB = 1 << 20
# What a full disk, or a limit of a user or a file, is told by.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# File systems that lie in memory: what is put there saves none.
IN_MEMORY = ("tmpfs", "ramfs")


class SpillFile:
    """`nbytes` of the disk under `directory`, of any content at first. The file has no name, so nobody else finds it.

    Raises UsageError where the disk has no room for it, or is memory."""

    def __init__(self, directory: Path, nbytes: int, read: ReadSettings) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if (kind := file_system(directory)) in IN_MEMORY:
            raise UsageError(
                f"{directory} is memory ({kind}): keys and values that spill there save none. Let UNDERSTUDY_CACHE name a directory"
                " on a disk."
            )
        self.nbytes = aligned(nbytes)
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        try:
            _reserve(self._file.fileno(), self.nbytes, directory)
            # Linux opens a file without a name again by its descriptor.
            self._path = Path(f"/proc/self/fd/{self._file.fileno()}")
            whole = Extent(self._path, 0, self.nbytes)
            self._tier = DiskTier([whole], block=read.block, threads=read.threads, throttle=read.throttle)
        except BaseException:
            self._file.close()
            raise
        self._writer = self._open_writer()
        self.bytes_written = 0

    def _open_writer(self) -> int:
        """A descriptor that writes as the tier reads: past the page cache where the file system allows."""
        direct = os.O_DIRECT if self._tier.direct else 0
        return os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | direct)

    @property
    def traffic(self) -> Traffic:
        """What was read."""
        return self._tier.traffic

    @property
    def note(self) -> str:
        """What a person should know; empty: all is well."""
        return "" if self._tier.direct else "the cache's disk refuses direct I/O: spilled keys and values pass the page cache"

    def write(self, offset: int, data: Tensor) -> None:
        """Put `data`, contiguous and a multiple of whole pages, at `offset`, a whole page. Raises TransferError."""
        room = data.flatten().view(torch.uint8)
        assert offset % ALIGNMENT == 0 and len(room) % ALIGNMENT == 0, f"{len(room)} bytes at {offset} are not whole pages"
        if room.data_ptr() % ALIGNMENT:
            room = arena(len(room), huge=False).copy_(room)
        left = room.numpy().data
        while left:
            try:
                done = os.pwrite(self._writer, left, offset)
            except OSError as error:
                raise TransferError(
                    f"Writing keys and values to the disk failed: {error.strerror}. Check the disk, then try again."
                ) from error
            left, offset = left[done:], offset + done
        self.bytes_written += len(room)
        if not self._tier.direct:
            os.fdatasync(self._writer)
            os.posix_fadvise(self._writer, 0, 0, os.POSIX_FADV_DONTNEED)

    def stream(self, wanted: Sequence[Sequence[tuple[int, int, int]]], rooms: Sequence[Tensor]) -> Iterator[Tensor]:
        """Read `wanted`, each of them pieces (offset in the file, bytes, place in a room), in order and ahead: the room that each
        came into, which is overwritten once the next one is asked for. Raises TransferError.

        rooms: uint8, of whole pages each; all but one are filled ahead."""
        under_way: deque[tuple[Tensor, list[DiskFetch]]] = deque()
        asked = 0
        try:
            for _ in wanted:
                while asked < len(wanted) and len(under_way) < len(rooms) - 1:
                    room = rooms[asked % len(rooms)]
                    under_way.append((room, [self._fetch(piece, room) for piece in wanted[asked]]))
                    asked += 1
                room, fetches = under_way.popleft()
                for fetch in fetches:
                    fetch.wait()
                yield room
        finally:
            if under_way:
                self._tier.cancel()

    def _fetch(self, piece: tuple[int, int, int], room: Tensor) -> DiskFetch:
        offset, nbytes, place = piece
        return self._tier.read(Extent(self._path, offset, nbytes), room[place : place + nbytes])

    def close(self) -> None:
        """Give the disk's room back. Further calls do nothing."""
        if not self._file.closed:
            self._tier.close()
            os.close(self._writer)
            self._file.close()


def file_system(directory: Path, mounts: Callable[[], str] = Path("/proc/self/mounts").read_text) -> str:
    """The kind of file system that `directory` lies in, such as ext4; empty where nobody says."""
    try:
        lines = [line.split() for line in mounts().splitlines()]
    except OSError:
        return ""
    place = directory.resolve()
    found = [(len(point), kind) for _, point, kind, *_ in lines if place.is_relative_to(point)]
    return max(found, key=lambda one: one[0])[1] if found else ""


def _reserve(descriptor: int, nbytes: int, directory: Path) -> None:
    """Take `nbytes` from the disk. Raises UsageError where it has no room."""
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in FULL:
            raise TransferError(f"Cannot take room on the disk of {directory}: {error.strerror}.") from error
        free = shutil.disk_usage(directory).free
        raise UsageError(
            f"Keys and values spill {nbytes / MIB:.0f} MiB to the disk of {directory}, which has {free / MIB:.0f} MiB free: choose"
            " a smaller --context or fewer --rows, or let UNDERSTUDY_CACHE name a directory on another disk."
        ) from None
