"""Tables of which rows are read when tokens need them: a checksum is one of a whole table, so it is read whole, and a large one
not again while its file stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress

from ..plan.remembered import write_json
from ..weights.entries import Stored
from ..weights.store import Store

# Bytes of a table that is read at every start: about a third of a second from a disk of 3 GB/s. A larger one is when it changed.
ALWAYS = 1 << 30
FILE = "proven-tables.json"


def prove_tables(store: Store, tables: Iterable[Stored], always: int = ALWAYS) -> None:
    """Compare `tables` of a `store` with their checksums: those of a file that have more than `always` bytes together only where
    that file is another than the last time. Raises StoreError, naming the place, where one is damaged."""
    files: dict[str, list[Stored]] = {}
    for table in tables:
        files.setdefault(table.file, []).append(table)
    known, found = _known(store), dict[str, list[object]]()
    for name, own in files.items():
        large = sum(table.nbytes for table in own) > always
        seen = _state(store, name, own)
        if not large or known.get(name) != seen:
            for table in own:
                store.prove(table)
        if large:
            found[name] = seen
    if found and found != known:
        # A Store that cannot be written to is read whole again at the next start.
        write_json(store.path / FILE, found)


def _state(store: Store, name: str, tables: Iterable[Stored]) -> list[object]:
    """What tells that a file and the tables in it are those that were read: it is read again where any of it changed."""
    told = store.file(name).stat()
    return [told.st_size, told.st_mtime_ns, told.st_ctime_ns, [[table.offset, table.nbytes, table.checksum] for table in tables]]


def _known(store: Store) -> dict[str, object]:
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads((store.path / FILE).read_text()))
    return {}
