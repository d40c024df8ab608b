"""A Store's index.json: written once, at the end, with a checksum of itself; read and checked before anything else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from ..errors import StoreError
from .entries import INDEX, Contents, LinearEntry, Part, Source, Stored
from .layout import ModelLayout, TableSpec
from .recipe import Recipe

VERSION = 1
# Ends the name of the directory that a Store is made in until it is whole.
PARTIAL = ".partial"


def save(contents: Contents, path: Path) -> None:
    """Write the index of `contents` to the file `path`."""
    source = contents.source
    content = {
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "shards": [list(shard) for shard in source.shards],
            "files": dict(source.files),
            "linked": {name: list(state) for name, state in source.linked.items()},
        },
        "recipe": recipe_to_json(contents.recipe),
        "embedding_name": contents.layout.embedding,
        "linears": [linear_to_json(entry) for entry in contents.linears.values()],
        "embedding": stored_to_json(contents.embedding),
        "shared": {name: stored_to_json(stored) for name, stored in contents.shared.items()},
        "extra": {name: stored_to_json(stored) for name, stored in contents.extra.items()},
    }
    if contents.layout.tables:
        content["tables"] = [[t.module, t.tensor, stored_to_json(contents.tables[t.tensor])] for t in contents.layout.tables]
    body = {"understudy_store": VERSION, "checksum": digest(content), "content": content}
    path.write_text(json.dumps(body) + "\n", encoding="utf-8")


def load(path: Path) -> Contents:
    """What the Store in the directory `path` holds. Raises StoreError for what is not a Store that can be read."""
    content = _content(path)
    linears = {entry.module: entry for entry in map(linear_from_json, content["linears"])}
    specs = tuple(entry.spec for entry in linears.values())
    shared = {name: stored_from_json(row) for name, row in content["shared"].items()}
    # most models have none
    tables = content.get("tables", [])
    source = content["source"]
    return Contents(
        layout=ModelLayout(
            specs, content["embedding_name"], tuple(shared), tables=tuple(TableSpec(module, name) for module, name, _ in tables)
        ),
        source=Source(
            name=source["name"],
            fingerprint=source["fingerprint"],
            shards=tuple((file, header) for file, header in source["shards"]),
            files=source["files"],
            linked={name: (size, mtime) for name, (size, mtime) in source.get("linked", {}).items()},
        ),
        recipe=_recipe_from_json(content["recipe"]),
        linears=linears,
        shared=shared,
        embedding=stored_from_json(content["embedding"]),
        tables={name: stored_from_json(row) for _, name, row in tables},
        extra={name: stored_from_json(row) for name, row in content["extra"].items()},
    )


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


def plain_json(path: Path) -> Any:
    """The content of a JSON file of a Store. Raises StoreError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StoreError(f"{path} cannot be read ({problem}): delete {path.parent} and prepare it again.") from None


def digest(content: Any) -> str:
    """Checksum of a JSON value, whatever its spacing."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def recipe_to_json(recipe: Recipe) -> dict[str, str]:
    """Format 1 also names the head's quantiser where it is that of all weights."""
    names = {"quantizer": recipe.quantizer, "head_quantizer": recipe.head or recipe.quantizer, "codec": recipe.codec}
    return names | ({"calibrated": recipe.calibrated} if recipe.calibrated else {})


def _recipe_from_json(row: Mapping[str, str]) -> Recipe:
    head = row["head_quantizer"]
    # the first Stores were made without a text
    return Recipe(row["quantizer"], row["codec"], row.get("calibrated", ""), "" if head == row["quantizer"] else head)


def stored_to_json(stored: Stored) -> list[Any]:
    dtype = str(stored.dtype).removeprefix("torch.")
    return [stored.file, stored.offset, stored.nbytes, dtype, list(stored.shape), stored.checksum]


def stored_from_json(row: list[Any]) -> Stored:
    file, offset, nbytes, dtype, shape, expected = row
    return Stored(file, offset, nbytes, getattr(torch, dtype), tuple(shape), expected)


def linear_to_json(entry: LinearEntry) -> dict[str, Any]:
    row: dict[str, Any] = {
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
    # few models have such weights
    row |= {"turned": True} if entry.turned else {}
    row |= {"experts": entry.experts, "chosen": entry.chosen} if entry.experts else {}
    return row | ({"pieces": list(entry.pieces)} if entry.pieces else {})


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
        turned=row.get("turned", False),
        experts=row.get("experts", 0),
        chosen=row.get("chosen", 0),
        pieces=tuple(row.get("pieces", ())),
    )
