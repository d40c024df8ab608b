"""Models in use: whoever uses the directory of one holds a lock on its config.json, and whoever deletes it needs that lock.

The system gives a lock back when its process ends, however it ends. A file system without locks keeps nobody from reading."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ..errors import UnderstudyError

FILE = "config.json"
# What a file system without locks answers.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Hold:
    """The directories of a model that are in use until `close`, or until this is dropped."""

    def __init__(self) -> None:
        self._files: dict[Path, IO[bytes]] = {}

    def add(self, directory: Path) -> None:
        """Use this directory too, if it is there; waits where it is being deleted."""
        if directory in self._files or not (directory / FILE).is_file():
            return
        file = self._files[directory] = (directory / FILE).open("rb")
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    def close(self) -> None:
        """Use them no more."""
        for file in self._files.values():
            file.close()


@contextmanager
def unused(directories: Iterable[Path]) -> Iterator[None]:
    """While this is entered, nobody begins to use the directories. Raises UnderstudyError where one is in use already."""
    with ExitStack() as locks:
        for directory in directories:
            if not (directory / FILE).is_file():
                continue
            file = locks.enter_context((directory / FILE).open("rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnderstudyError(f"{directory} is in use by a running process: end that first.") from None
            except OSError as error:
                why = f"it cannot be known whether it is in use ({error.strerror})"
                raise UnderstudyError(f"{directory} is not deleted, since {why}: delete it by hand.") from None
        yield


def in_use(directory: Path) -> bool:
    """Does a running process use this directory? False where that cannot be known."""
    if not (directory / FILE).is_file():
        return False
    with (directory / FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False
