"""Writing so that a kill at any moment loses at most one tensor: appended extents, a journal, one process at a time."""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..errors import StoreError
from ..tiers.file import REFUSALS
from ..tiers.memory import aligned, arena
from .entries import Stored
from .files import buffer

JOURNAL = "journal.jsonl"
# bytes that are written together, and from how many on past the page cache
TOGETHER, LONG = 1 << 20, 256 << 10
ELSEWHERE = "choose another directory with --output or $UNDERSTUDY_CACHE"


@contextmanager
def explained(directory: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """What went wrong while writing into `directory`, in one line that says what to do."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.EEXIST, errno.ENOTDIR):
            # Something else has the name of a directory that is needed.
            what = "it, or what it is in, is a file"
            raise StoreError(f"Writing to {directory} failed: {what}. Move that, or {elsewhere}.") from None
        remedy = "Free some space" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
        raise StoreError(f"Writing to {directory} failed: {problem.strerror}. {remedy}, or {elsewhere}.") from None


class Extents:
    """A file that grows by page-aligned extents. What lies past `end` at first is left from a kill: cut off.

    Long extents go past the page cache where the file system allows: there they would take processor time, and memory from what is
    worth keeping."""

    def __init__(self, path: Path, end: int) -> None:
        self.name, self.end = path.name, end
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, end)
        self._direct = _opened_directly(path)
        # where bytes wait to be written together
        self._room = arena(TOGETHER, huge=False).numpy().data

    def append(self, pieces: Iterable[Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> Stored:
        """One extent from the bytes of `pieces`, one after the other."""
        start, done, waiting = self.end, 0, 0
        digest = xxhash.xxh3_64()
        for piece in pieces:
            view = buffer(piece.contiguous())
            digest.update(view)
            while view:
                count = min(len(view), TOGETHER - waiting)
                self._room[waiting : waiting + count] = view[:count]
                view, waiting = view[count:], waiting + count
                if waiting == TOGETHER:
                    self._write(start + done, waiting)
                    done, waiting = done + waiting, 0
        self._write(start + done, waiting)
        done += waiting
        self.end = aligned(start + done)
        os.ftruncate(self._descriptor, self.end)
        return Stored(self.name, start, done, dtype, shape, digest.hexdigest())

    def _write(self, offset: int, count: int) -> None:
        """Write the first `count` bytes of the room, and zeros up to the end of a page."""
        whole = aligned(count)
        self._room[count:whole] = bytes(whole - count)
        view = self._room[:whole]
        while view and count >= LONG and self._direct is not None:
            try:
                done = os.pwrite(self._direct, view, offset)
            except OSError as problem:
                if problem.errno not in REFUSALS:
                    raise
                os.close(self._direct)
                self._direct = None
            else:
                view, offset = view[done:], offset + done
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            view, offset = view[done:], offset + done

    def add(self, tensor: Tensor) -> Stored:
        """One extent from one tensor."""
        return self.append([tensor], tensor.dtype, tuple(tensor.shape))

    def cut(self, end: int) -> None:
        """Forget everything from `end` on."""
        self.end = end
        os.ftruncate(self._descriptor, end)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)


def _opened_directly(path: Path) -> int | None:
    """A descriptor that writes past the page cache; None where there is none."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT) if hasattr(os, "O_DIRECT") else None
    except OSError as problem:
        if problem.errno not in REFUSALS:
            raise
        return None


class Journal:
    """JSON lines: the first identifies the build, the others finished tensors. If the first differs, start over."""

    def __init__(self, path: Path, subject: dict[str, Any]) -> None:
        self._path, self._subject = path, subject
        lines = _whole_lines(path)
        self.records = lines[1:] if lines[:1] == [subject] else []

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def keep(self, count: int) -> None:
        """Forget all but the first `count` records."""
        del self.records[count:]
        lines = [self._subject, *self.records]
        # The one that is there stays until this is whole: a kill or a full disk must not take what is known.
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        partial.replace(self._path)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that was not written to its end."""
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    with suppress(ValueError):
        for line in lines[:-1]:
            records.append(json.loads(line))
    return records


@contextmanager
def only_process(path: Path, waiting: Callable[[], None], elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Hold the lock file `path`; `waiting()` is called once if another process has it. It is removed afterwards.

    Raises StoreError where there can be no such file; `elsewhere` says where there could be one."""
    with explained(path.parent, elsewhere):
        descriptor = _locked(path, waiting)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def lock_of(directory: Path) -> Path:
    """The lock file that a process holds while it makes the Store in `directory`."""
    return directory.with_name(directory.name + ".lock")


def await_process(path: Path, waiting: Callable[[], None]) -> None:
    """Return once no process holds the lock file `path`: at once where one that was killed has left it. `waiting()` is called first
    if one does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        # Shared, since all who wait go on together.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _locked(path: Path, waiting: Callable[[], None]) -> int:
    """The descriptor of the lock file `path`, which this process alone holds."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)  # the other process removed the file it had locked: this lock guards nothing


def synced(path: Path) -> None:
    """Return once the file or directory `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
