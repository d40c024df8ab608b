"""Which lines of a job are done: 32 bytes for each line of the input, and the output, which only ever grows by whole lines."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import UnderstudyError, UsageError
from .records import ID, Line, key_of, lines

# As a file is read: bytes so far, bytes in all.
Report = Callable[[int, int], None]
# What every record begins with, one that was cut short too.
BEGINNING = f'{{"id": "{ID}'.encode()
# How many custom_ids that stand twice are told, and how many lines of each.
MOST_TOLD = 4
OTHERWISE = "choose another --output, or --overwrite it"


@dataclass(frozen=True)
class Index:
    """The lines of an input by their keys. Both arrays have one entry of 16 bytes a line, in the order of the keys."""

    keys: NDArray[np.bytes_]
    # What each line says, as a digest.
    ids: NDArray[np.bytes_]

    @classmethod
    def of(cls, file: BinaryIO, report: Report) -> Index:
        """Read all of `file` once. Raises UsageError for custom_ids that stand twice, of which it names the lines."""
        size = os.fstat(file.fileno()).st_size
        keys, ids = bytearray(), bytearray()
        for line in lines(file):
            keys += line.key
            ids += _digest(line.id)
            report(file.tell(), size)
        found = np.frombuffer(bytes(keys), "S16")
        order = np.argsort(found, kind="stable")
        ordered = found[order]
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(twice):
            raise UsageError(_twice(file, {bytes(keys[16 * place :][:16]) for place in order[twice]}, len(twice)))
        return cls(ordered, np.frombuffer(bytes(ids), "S16")[order])

    def __len__(self) -> int:
        return len(self.keys)

    def place(self, key: bytes) -> int | None:
        """Where the line with this key stands; None: there is no such line."""
        sought = np.array(key, "S16")
        place = int(np.searchsorted(self.keys, sought))
        return place if place < len(self.keys) and self.keys[place] == sought else None

    def says(self, place: int, record_id: Any) -> bool:
        """Whether a record of this id answers the line at `place` as it is now."""
        return isinstance(record_id, str) and bool(self.ids[place] == np.array(_digest(record_id), "S16"))


def _digest(record_id: str) -> bytes:
    """The 16 bytes of a record's id; none where it is no such id."""
    try:
        return bytes.fromhex(record_id.removeprefix(ID))
    except ValueError:
        return b""


def _twice(file: BinaryIO, keys: Collection[bytes], again: int) -> str:
    """What to say of a file in which these keys stand more than once: `again` lines have the key of an earlier one."""
    file.seek(0)
    found: dict[bytes, tuple[str, list[str]]] = {}
    for line in lines(file):
        if line.key in keys:
            found.setdefault(line.key, (repr(line.asked.custom_id)[:80], []))[1].append(str(line.number))
    told = _some([f"{name} in lines {_some(numbers, ', ')}" for name, numbers in found.values()], "; ")
    lead = f"{again:,} lines have the custom_id of an earlier line" if again > 1 else "A line has the custom_id of an earlier one"
    return f"{lead}: {told}. Give each line its own, by which its answer is found; nothing was answered."


def _some(words: Sequence[str], between: str) -> str:
    """The first of `words`, and how many more there are."""
    if len(words) > MOST_TOLD:
        words = [*words[:MOST_TOLD], f"{len(words) - MOST_TOLD:,} more"]
    return between.join(words)


class Output:
    """The output of a job, open for this process alone. `done[place]`: the line at that place of the index has its record."""

    def __init__(self, path: Path, index: Index, model_name: str, overwrite: bool, otherwise: str = OTHERWISE):
        """Raises UsageError where the file cannot be written, or is not the output of this input by this model: `otherwise` says
        what to do then."""
        self.path = path
        self.otherwise = otherwise
        self.index = index
        self.model_name = model_name
        self.done: NDArray[np.bool_] = np.zeros(len(index), bool)
        # Lines that have a record, and those of them that failed.
        self.finished = 0
        self.failed = 0
        try:
            self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(f"Cannot write {path}: {error.strerror}.") from None
        try:
            self._lock()
            if overwrite:
                os.ftruncate(self.file, 0)
            self._read()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Keep others out. The lock goes with this process, however it ends."""
        if not stat.S_ISREG(os.fstat(self.file).st_mode):
            raise UsageError(f"{self.path} is no file: --output is where a later run sees what is done.")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"Another process is writing to {self.path}: wait until it ends.") from None
        except OSError as error:
            raise UsageError(f"Cannot lock {self.path}: {error.strerror}. Choose a place for it on another disk.") from None

    def _read(self) -> None:
        """Count the records that are there, and drop a torn last line."""
        whole = 0
        with open(self.file, "rb", closefd=False) as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n") and BEGINNING.startswith(text[: len(BEGINNING)]):
                    break
                self._count(self._record(text, number))
                whole += len(text)
        os.ftruncate(self.file, whole)

    def _record(self, text: bytes, number: int) -> dict[str, Any]:
        """The record in line `number`. UsageError where it answers no line of the input."""
        record: Any = None
        with suppress(ValueError, RecursionError):
            record = json.loads(text)
        place = self._place(record)
        if place is None:
            raise UsageError(f"Line {number} of {self.path} answers no line of this input: {self.otherwise}.")
        if not self.index.says(place, record["id"]):
            name = record.get("custom_id")
            changed = f"The line of custom_id {name!r} has changed since it was answered in {self.path}"
            raise UsageError(f"{changed}: {self.otherwise}.")
        if self.done[place]:
            raise UsageError(f"Line {number} of {self.path} answers a line that was answered before: {self.otherwise}.")
        model = ((record.get("response") or {}).get("body") or {}).get("model", self.model_name)
        if model != self.model_name:
            raise UsageError(
                f"Line {number} of {self.path} is by the model {model!r}, not {self.model_name!r}: {self.otherwise}."
            )
        return dict(record)

    def _place(self, record: Any) -> int | None:
        """The place of the line that `record` answers."""
        if not isinstance(record, dict) or not {"id", "custom_id", "response", "error"} <= set(record):
            return None
        error = record["error"] if isinstance(record["error"], dict) else {}
        custom_id = record["custom_id"]
        if isinstance(custom_id, str):
            return self.index.place(key_of(custom_id, 0))
        return self.index.place(key_of(None, error.get("line", 0)))

    def _count(self, record: dict[str, Any]) -> None:
        self.done[self._place(record)] = True
        self.finished += 1
        self.failed += record["error"] is not None

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, to the disk. Raises UnderstudyError where it cannot be written whole."""
        text = memoryview(json.dumps(record, allow_nan=False).encode() + b"\n")
        try:
            while text:
                text = text[os.write(self.file, text) :]
            os.fsync(self.file)
        except OSError as error:
            raise UnderstudyError(f"Cannot write {self.path}: {error.strerror}. When it can be written, run this again.") from None
        self._count(record)

    def holds(self, line: Line) -> bool:
        """Whether `line` has its record. UsageError for one that was not there when the input was read first."""
        place = self.index.place(line.key)
        if place is None:
            raise UsageError(f"Line {line.number} of the input has changed while it was read: run this again.")
        return bool(self.done[place])

    def left(self, input: BinaryIO) -> Iterator[Line]:
        """The lines of `input` that have no record yet, read from its beginning. Raises as `holds` does."""
        input.seek(0)
        return (line for line in lines(input) if not self.holds(line))

    def close(self) -> None:
        """Let others write. Further calls are an error."""
        os.close(self.file)
