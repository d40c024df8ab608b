"""A Store's index.json: written once, at the end, with a checksum of itself; read and checked before anything else."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from ..errors import CheckpointError, StoreError
from .checkpoint import Checkpoint
from .layout import LinearSpec, ModelLayout
from .store import INDEX, LinearEntry, Part, Recipe, Source, Store, Stored, extent_bytes, plain_json

VERSION = 1
PARTIAL = ".partial"


def save(store: Store, path: Path) -> None:
    """Write the index of `store` to `path`."""
    content = {
        "source": {
            "name": store.source.name,
            "fingerprint": store.source.fingerprint,
            "shards": [list(shard) for shard in store.source.shards],
            "files": dict(store.source.files),
            "linked": {name: list(seen) for name, seen in store.source.linked.items()},
        },
        "recipe": vars(store.recipe),
        "embedding_name": store.layout.embedding,
        "linears": [linear_to_json(entry) for entry in store.linears.values()],
        "embedding": stored_to_json(store.embedding),
        "shared": {name: stored_to_json(stored) for name, stored in store.shared.items()},
        "extra": {name: stored_to_json(stored) for name, stored in store.extra.items()},
    }
    body = {"understudy_store": VERSION, "checksum": digest(content), "content": content}
    path.write_text(json.dumps(body) + "\n", encoding="utf-8")


def load(path: Path) -> Store:
    """The Store in directory `path`, its index checked and its files at least as long as the index says."""
    content = _content(path)
    linears = {entry.module: entry for entry in map(linear_from_json, content["linears"])}
    specs = tuple(LinearSpec(entry.module, entry.weight, entry.shape) for entry in linears.values())
    shared = {name: stored_from_json(row) for name, row in content["shared"].items()}
    source = content["source"]
    store = Store(
        path=path,
        config=plain_json(path / "config.json"),
        layout=ModelLayout(specs, content["embedding_name"], tuple(shared)),
        source=Source(
            name=source["name"],
            fingerprint=source["fingerprint"],
            shards=tuple((file, header) for file, header in source["shards"]),
            files=source["files"],
            linked={name: (size, mtime) for name, (size, mtime) in source.get("linked", {}).items()},
        ),
        recipe=Recipe(**content["recipe"]),
        linears=linears,
        shared=shared,
        embedding=stored_from_json(content["embedding"]),
        extra={name: stored_from_json(row) for name, row in content["extra"].items()},
    )
    _check_sizes(store)
    _check_linked(store)
    check_files(store)
    return store


def _content(path: Path) -> Any:
    if not (path / INDEX).is_file():
        unfinished = path.name.endswith(PARTIAL) or path.with_name(path.name + PARTIAL).is_dir()
        reason = "is not finished: prepare it again, it goes on where it stopped" if unfinished else "is not a Store"
        raise StoreError(f"{path} {reason}." if unfinished else f"{path} {reason}: `understudy prepare` makes one.")
    body = plain_json(path / INDEX)
    if not isinstance(body, dict) or not isinstance(version := body.get("understudy_store"), int):
        raise StoreError(f"{path / INDEX} is not the index of a Store: delete {path} and prepare it again.")
    if version > VERSION:
        raise StoreError(f"{path} was made by a newer Understudy (format {version}, this one reads {VERSION}): update.")
    if version < VERSION or digest(body.get("content")) != body.get("checksum"):
        raise StoreError(f"{path / INDEX} is damaged or outdated: delete {path} and prepare it again.")
    return body["content"]


def _check_sizes(store: Store) -> None:
    path, ends = store.path, dict[str, int]()
    for stored in every_extent(store):
        if stored.file not in store.source.linked:
            ends[stored.file] = max(ends.get(stored.file, 0), stored.offset + extent_bytes(stored))
    for name, end in ends.items():
        file = store.file(name)
        if not file.is_file() or file.stat().st_size < end:
            raise StoreError(f"{file} is missing or cut short ({end} bytes needed): delete {path}, prepare it again.")


def linked(linears: Iterable[LinearEntry]) -> dict[str, tuple[int, int]]:
    """The files of the source that parts lie in: size and mtime of each."""
    names = {part.stored.file for entry in linears for part in entry.parts}
    stats = {name: Path(name).stat() for name in sorted(names) if Path(name).is_absolute()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _check_linked(store: Store) -> None:
    """The files of the source that parts lie in are as they were. Where only the date differs, samples of them decide."""
    touched = []
    for name, (size, mtime) in store.source.linked.items():
        try:
            found = Path(name).stat()
        except OSError:
            raise StoreError(f"{name} is gone, and {_relink(store)}") from None
        if found.st_size != size:
            raise StoreError(f"{name} was changed, and {_relink(store)}")
        if found.st_mtime_ns != mtime:
            touched.append(name)
    if touched:
        try:
            same = Checkpoint.open(Path(touched[0]).parent).fingerprint == store.source.fingerprint
        except CheckpointError:
            same = False
        if not same:
            raise StoreError(f"{', '.join(touched)} was changed, and {_relink(store)}")


def _relink(store: Store) -> str:
    return f"{store.path} links to it: put it back, or delete {store.path} and prepare it again, or without --link."


def check_files(store: Store) -> None:
    """The copied configuration and tokenizer files are as they were."""
    for name, expected in store.source.files.items():
        file = store.file(name)
        if not file.is_file() or file_checksum(file) != expected:
            raise StoreError(f"{file} is missing or was changed: delete {store.path} and prepare it again.")


def every_extent(store: Store) -> list[Stored]:
    """All extents of all files."""
    extents = [store.embedding, *store.shared.values(), *store.extra.values()]
    for entry in store.linears.values():
        extents += extents_of(entry)
    return extents


def extents_of(entry: LinearEntry) -> list[Stored]:
    """All extents of one weight."""
    return [*entry.substitute.values(), *(part.stored for part in entry.parts)]


def file_checksum(path: Path) -> str:
    """xxh3_64 of a small file."""
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def digest(content: Any) -> str:
    """Checksum of a JSON value, whatever its spacing."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def stored_to_json(stored: Stored) -> list[Any]:
    dtype = str(stored.dtype).removeprefix("torch.")
    return [stored.file, stored.offset, stored.nbytes, dtype, list(stored.shape), stored.checksum]


def stored_from_json(row: list[Any]) -> Stored:
    file, offset, nbytes, dtype, shape, expected = row
    return Stored(file, offset, nbytes, getattr(torch, dtype), tuple(shape), expected)


def linear_to_json(entry: LinearEntry) -> dict[str, Any]:
    return {
        "module": entry.module,
        "weight": entry.weight,
        "shape": list(entry.shape),
        "dtype": str(entry.dtype).removeprefix("torch."),
        "quantizer": entry.quantizer,
        "substitute": {name: stored_to_json(stored) for name, stored in entry.substitute.items()},
        "codec": entry.codec,
        "parts": [[part.first_block, part.blocks, stored_to_json(part.stored)] for part in entry.parts],
        "checksum": entry.checksum,
    }


def linear_from_json(row: Mapping[str, Any]) -> LinearEntry:
    rows, columns = row["shape"]
    return LinearEntry(
        module=row["module"],
        weight=row["weight"],
        shape=(rows, columns),
        dtype=getattr(torch, row["dtype"]),
        quantizer=row["quantizer"],
        substitute={name: stored_from_json(stored) for name, stored in row["substitute"].items()},
        codec=row["codec"],
        parts=tuple(Part(first, blocks, stored_from_json(stored)) for first, blocks, stored in row["parts"]),
        checksum=row["checksum"],
    )
