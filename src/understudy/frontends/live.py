"""One line on stderr that says how it goes. It never mixes with the text: on a shared terminal it stays below it."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from ..errors import UnderstudyError
from ..plan.sizes import format_size
from .show import duration, rate

_CLEAR_LINE = "\r\x1b[K"
_CLEAR_BELOW = "\x1b[J"
# Scrolls if this is the last line of the terminal, so that there is a line below it.
_OPEN_LINE_BELOW = "\x1bD\x1b[A"
_SAVE, _DOWN, _RESTORE = "\x1b7", "\x1b[B\r", "\x1b8"


class Live:
    """The line. On anything but a terminal it is never drawn."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.shown = False
        # The column where the text above ends; None until text is written to the same terminal.
        self.column: int | None = None

    def shares(self, stream: TextIO) -> bool:
        """Whether text written to `stream` stands on the same terminal, or in the same file, as this line."""
        try:
            return os.path.sameopenfile(stream.fileno(), self.stream.fileno())
        except io.UnsupportedOperation:  # a stream without a file behind it
            return False

    def draw(self, line: str) -> None:
        """Show this line instead of the last one."""
        if self.quiet or not self.terminal:
            return
        # 0 columns: the terminal does not know its width.
        width = os.get_terminal_size(self.stream.fileno()).columns or 80
        line = line[: width - 1]
        if self.column is None:
            self._write(_CLEAR_LINE + line)
        elif self.column % width or not self.column:  # at the very edge a cursor cannot be put back
            self._write(_OPEN_LINE_BELOW + _SAVE + _DOWN + line + "\x1b[K" + _RESTORE)
        self.shown = True

    def clear(self) -> None:
        """Take the line away, so that something else can be written."""
        if self.shown:
            self._write(_CLEAR_LINE if self.column is None else _CLEAR_BELOW)
            self.shown = False

    def above(self, text: str) -> None:
        """This text now stands above the line, on the same terminal."""
        _, newline, last = text.rpartition("\n")
        self.column = len(last) + (0 if newline else self.column or 0)

    def say(self, line: str) -> None:
        """A line that stays, on a line of its own."""
        if not self.quiet:
            self.end()
            self._write(line + "\n")

    def end(self) -> None:
        """Nothing is half written: what comes next starts on a line of its own."""
        self.clear()
        if self.column:
            self._write("\n")
        self.column = None

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class Stopped(UnderstudyError):
    """Ctrl-C ended what the same command goes on with (exit status 130, which shells report for that)."""

    exit_status = 130


@contextmanager
def resumable(live: Live) -> Iterator[None]:
    """What is done inside stays when it is ended: Ctrl-C says so."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("stopped. The same command goes on from there.") from None
    finally:
        live.end()


class Progress:
    """What loading and preparing report: share, rate, time left. Live on a terminal, else a line each ten seconds."""

    EVERY = 0.1
    EVERY_LINE = 10.0
    # Bytes that take so long to read that a log should say at once what is going on.
    LARGE = 256 << 20

    def __init__(self, live: Live, counted: str = "") -> None:
        self.live = live
        # What totals count, such as "lines"; empty: bytes, where they are so large.
        self.counted = counted
        self.stage = ""
        self.started = 0.0
        self.first = 0.0
        # Has the stage done its first piece?
        self.begun = False
        self.next = 0.0

    def __call__(self, stage: str, done: float, total: float) -> None:
        # A stage without a total is a note.
        if total == 0:
            self.live.say(stage)
            return
        moment = time.monotonic()
        if stage != self.stage:
            self.stage = stage
            self.started = moment
            self.first = done
            self.begun = False
            self.next = moment + (0.0 if self.live.terminal or total >= self.LARGE else self.EVERY_LINE)
        elif not self.begun and done > self.first:
            # With the first piece kernels may be compiled: rate and time left are those of the pieces after it.
            self.begun, self.started, self.first = True, moment, done
        if moment < self.next:
            return
        if self.live.terminal:
            self.live.draw(self._line(done, total, moment))
            self.next = moment + self.EVERY
        else:
            self.live.say(self._line(done, total, moment))
            self.next = moment + self.EVERY_LINE

    def _line(self, done: float, total: float, moment: float) -> str:
        parts = [self.stage]
        if total > 0:
            parts.append(f"{min(done / total, 1.0):.0%}")
        passed = moment - self.started
        gone = done - self.first
        bytes_pass = not self.counted and total >= 2**20
        if self.counted:
            parts.append(f"{done:,.0f} of {total:,.0f} {self.counted}")
        elif bytes_pass:
            parts.append(f"{format_size(done)} of {format_size(total)}")
        if passed > 1.0 and gone > 0:
            if bytes_pass:
                parts.append(rate(gone / passed))
            if total > done:
                parts.append(f"{duration((total - done) * passed / gone)} left")
        return " · ".join(parts)
