"""Files of tensors in a directory of limited size, which several processes may share. A file is whole or it is not there.

Each file is a safetensors file with a checksum of all its bytes, its name and what it belongs to in its header."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash
from safetensors.torch import load, save
from torch import Tensor

from ..errors import UsageError

SUFFIX = ".safetensors"
# Ends the name of a file that is being written.
UNFINISHED = ".part"
# Seconds after which an unfinished file was left by a process that is gone.
LEFT = 3600.0
FOLDER = re.compile(r"[0-9a-f]{16}")
OURS = re.compile(rf"[0-9a-f]{{32}}\.\w+({re.escape(SUFFIX)}|\.[0-9a-f]{{32}}{re.escape(UNFINISHED)})")
# What stands in a header in place of the checksum while it is computed.
NO_CHECKSUM = b"0" * 32
MARK = b'"checksum":"'
# A directory is looked through again once so much of its limit was written.
SHARE = 64
log = logging.getLogger("understudy.prefixes")


@dataclass(frozen=True)
class FoundFile:
    """A file of the directory, ordered by when it was last used."""

    used: float
    size: int
    path: Path


class PrefixFiles:
    """Tensors by name in `directory`, which is there. Files of another `identity` are no concern. All together have at most `limit`
    bytes: what was used least recently goes."""

    def __init__(self, directory: Path, limit: int, identity: str):
        self.directory = directory
        self.folder = directory / identity[:16]
        self.limit = limit
        self.identity = identity
        # Files that were found damaged, and bytes that were read and written.
        self.damaged = 0
        self.bytes_read = 0
        self.bytes_written = 0
        # Bytes in the directory when it was last looked through, with what this process has written since.
        self._total: int | None = None
        self._since = 0

    def path(self, name: str) -> Path:
        return self.folder / (name + SUFFIX)

    def has(self, name: str) -> bool:
        """Is there such a file, whatever it holds?"""
        return self.path(name).is_file()

    def read(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a file; None where there is none, or none that is whole. A damaged file is told of once, and deleted."""
        path = self.path(name)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(path, f"cannot be read ({error.strerror})")
            return None
        if wrong := _wrong(content, _about(self.identity, name)):
            self._refuse(path, wrong)
            return None
        self.bytes_read += len(content)
        return load(content)

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Make the file `name`, whole or not at all; a file that is larger than the limit is not made. Raises OSError."""
        content = _sealed(tensors, _about(self.identity, name))
        if len(content) > self.limit:
            return
        self.folder.mkdir(exist_ok=True)
        self._make_room(len(content))
        unfinished = self.folder / f"{name}.{uuid.uuid4().hex}{UNFINISHED}"
        try:
            with unfinished.open("xb") as file:
                file.write(content)
            unfinished.replace(self.path(name))
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise
        self.bytes_written += len(content)
        self._total = (self._total or 0) + len(content)
        self._since += len(content)

    def touch(self, name: str) -> bool:
        """Note that the file `name` was used. Whether it is there."""
        try:
            os.utime(self.path(name))
        except FileNotFoundError:
            return False
        except OSError:
            # A directory that cannot be written keeps its files.
            pass
        return True

    def _refuse(self, path: Path, why: str) -> None:
        self.damaged += 1
        log.warning("%s %s: it is left out, and the tokens are read again.", path, why)
        with suppress(OSError):
            path.unlink()

    def _make_room(self, nbytes: int) -> None:
        """Delete what was used least recently until there is room for `nbytes` more."""
        if self._total is not None and self._total + nbytes <= self.limit and self._since < self.limit // SHARE:
            return
        found = sorted(self._files(), key=lambda file: file.used)
        total = sum(file.size for file in found)
        for file in found:
            if total + nbytes <= self.limit:
                break
            with suppress(OSError):
                file.path.unlink()
            total -= file.size
        self._total = total
        self._since = 0

    def _files(self) -> Iterator[FoundFile]:
        """Every file that a process has made here. Those that were left unfinished are deleted, those under way and others' files
        are let alone."""
        for folder in self.directory.iterdir():
            if not FOLDER.fullmatch(folder.name) or not folder.is_dir():
                continue
            for path in folder.iterdir():
                if not OURS.fullmatch(path.name):
                    continue
                # Another process may have deleted it.
                with suppress(OSError):
                    state = path.stat()
                    if not path.name.endswith(UNFINISHED):
                        yield FoundFile(state.st_mtime, state.st_size, path)
                    elif time.time() - state.st_mtime > LEFT:
                        path.unlink()


def directory_of(path: str | Path) -> Path:
    """The directory `path`, made where there is none. Raises UsageError where it cannot be one."""
    directory = Path(path).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--prefix-cache {directory} cannot be a directory ({error.strerror}): choose another.") from None
    return directory


def _about(identity: str, name: str) -> dict[str, str]:
    """What a file says of itself."""
    return {"understudy": "prefix 1", "identity": identity, "name": name}


def _sealed(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """A safetensors file with its checksum in its header."""
    content = save(dict(tensors), {**about, "checksum": NO_CHECKSUM.decode()})
    place = content.index(MARK) + len(MARK)
    return content[:place] + _digest(content, place) + content[place + len(NO_CHECKSUM) :]


def _is_sealed(content: bytes) -> bool:
    """Is every byte as it was when the file was made?"""
    place = content.find(MARK, 0, 8 + int.from_bytes(content[:8], "little")) + len(MARK)
    return place > len(MARK) and content[place : place + len(NO_CHECKSUM)] == _digest(content, place)


def _digest(content: bytes, place: int) -> bytes:
    """The checksum of `content`, whatever stands at `place` of it, where the checksum belongs."""
    digest = xxhash.xxh3_128(content[:place])
    digest.update(NO_CHECKSUM)
    digest.update(memoryview(content)[place + len(NO_CHECKSUM) :])
    return digest.hexdigest().encode()


def _wrong(content: bytes, about: Mapping[str, str]) -> str:
    """Why a file is not the one that `about` says; empty: it is."""
    if not _is_sealed(content):
        return "is damaged"
    told = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return "" if {**told, "checksum": ""} == {**about, "checksum": ""} else "belongs to something else"
