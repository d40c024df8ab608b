"""Whether the files of a Store, and those of the source that it points to, are as they were when it was made."""

from collections.abc import Iterable
from pathlib import Path

import xxhash

from ..errors import CheckpointError, StoreError
from .checkpoint import Checkpoint
from .entries import Contents, Source, Stored


def check(path: Path, contents: Contents) -> None:
    """Raise StoreError, naming the file, unless the files of the Store in `path` are long enough and unchanged.

    The bytes of the weights are not read: `Store.read` and `Store.verify` compare them with their checksums."""
    _check_sizes(path, contents)
    _check_linked(path, contents.source)
    check_copied(path, contents.source)


def _check_sizes(path: Path, contents: Contents) -> None:
    """Every file of the Store is at least as long as the index says."""
    ends: dict[str, int] = {}
    for stored in contents.extents:
        if stored.file not in contents.source.linked:
            ends[stored.file] = max(ends.get(stored.file, 0), stored.offset + stored.padded)
    for name, end in ends.items():
        file = path / name
        if not file.is_file() or file.stat().st_size < end:
            raise StoreError(f"{file} is missing or cut short ({end} bytes needed): delete {path}, prepare it again.")


def _check_linked(path: Path, source: Source) -> None:
    """The source files that a Store points to are as they were. Where only a date differs, samples of the content decide."""
    remedy = f"{path} links to it: put it back, or delete {path} and prepare it again, or without --link."
    touched = []
    for name, (size, mtime) in source.linked.items():
        try:
            state = Path(name).stat()
        except OSError:
            raise StoreError(f"{name} is gone, and {remedy}") from None
        if state.st_size != size:
            raise StoreError(f"{name} was changed, and {remedy}")
        if state.st_mtime_ns != mtime:
            touched.append(name)
    if touched and not _same_content(Path(touched[0]).parent, source.fingerprint):
        raise StoreError(f"{', '.join(touched)} was changed, and {remedy}")


def _same_content(directory: Path, fingerprint: str) -> bool:
    try:
        return Checkpoint.open(directory).fingerprint == fingerprint
    except CheckpointError:
        return False


def check_copied(path: Path, source: Source) -> None:
    """Raise StoreError unless the copied configuration and tokenizer files are as they were."""
    for name, expected in source.files.items():
        file = path / name
        if not file.is_file() or file_checksum(file) != expected:
            raise StoreError(f"{file} is missing or was changed: delete {path} and prepare it again.")


def linked_files(extents: Iterable[Stored]) -> dict[str, tuple[int, int]]:
    """The source files that `extents` lie in: size in bytes and mtime in nanoseconds of each."""
    names = {stored.file for stored in extents}
    states = {name: Path(name).stat() for name in sorted(names) if Path(name).is_absolute()}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def file_checksum(path: Path) -> str:
    """xxh3_64 of a small file."""
    return xxhash.xxh3_64_hexdigest(path.read_bytes())
