"""The standard streams, as they may be: closed, a pipe whose reader left, a file on a full disk.

Text that cannot be written ends the command with one line. What is said on stderr never ends anything: it is lost."""

import errno
import io
import os
import sys
from typing import Any, TextIO

from ..errors import UnderstudyError


class OutputError(UnderstudyError):
    """The output could not be written (exit status 1)."""


class _Output(io.FileIO):
    """A file whose first failed write is an OutputError (of a pipe without a reader: a BrokenPipeError); later ones are lost."""

    failed = False

    def write(self, data: Any) -> int:
        if self.failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            self.failed = True
            raise
        except OSError as error:
            self.failed = True
            why = "standard output is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(f"The output could not be written: {why}.") from None


class _Messages(io.FileIO):
    """A file whose failed writes are lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def guard() -> None:
    """Replace the standard streams of this process by ones that are always there and fail as this module says.

    Streams that somebody else has put in their place stay."""
    if sys.stdin is None:
        sys.stdin = os.fdopen(_descriptor(None, os.O_RDONLY), closefd=False)
    if sys.stdout is sys.__stdout__:
        # Where it is closed, /dev/null is opened for reading, so that writing fails.
        output = _Output(_descriptor(sys.__stdout__, os.O_RDONLY), "w", closefd=False)
        sys.stdout = _text(io.BufferedWriter(output), sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        messages = _Messages(_descriptor(sys.__stderr__, os.O_WRONLY), "w", closefd=False)
        sys.stderr = _text(io.BufferedWriter(messages), sys.__stderr__)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of few characters never stops the text.
            stream.reconfigure(errors="replace")


def complain(line: str) -> None:
    """Say on stderr, in one line, what went wrong."""
    print(f"understudy: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _descriptor(stream: TextIO | None, mode: int) -> int:
    """The descriptor of the stream, or one of /dev/null where the stream was closed when the process began.

    That one gets the closed one's number. Otherwise the next file that is opened would get it, with what libraries write there."""
    return os.open(os.devnull, mode) if stream is None else stream.fileno()


def _text(buffer: io.BufferedWriter, like: TextIO | None) -> TextIO:
    """A text stream on `buffer` with the encoding of another; on a terminal and for stderr, each line is written at once."""
    lines = buffer.isatty() or isinstance(buffer.raw, _Messages)
    return io.TextIOWrapper(buffer, encoding=like.encoding if like else "utf-8", errors="replace", line_buffering=lines)
