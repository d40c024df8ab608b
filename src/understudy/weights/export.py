"""A Store back into the checkpoint it came from: the same files, byte for byte."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import StoreError
from .entries import LinearEntry, Progress
from .files import buffer
from .index import PARTIAL
from .store import Store
from .writing import explained


def export(store: Store, directory: Path, progress: Progress | None = None) -> None:
    """Write the source's safetensors, configuration and tokenizer files to `directory`, which must be new or empty.

    What cannot be finished leaves nothing behind."""
    directory = Path(directory).expanduser().absolute()
    work = directory.with_name(directory.name + PARTIAL)
    if work.exists() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
        raise StoreError(f"{work if work.exists() else directory} is not empty: choose a new directory.")
    with explained(directory, "choose another directory"):
        work.mkdir(parents=True)
        try:
            _write(store, work, progress or (lambda done, total, name: None))
            work.rename(directory)
        except BaseException:
            shutil.rmtree(work)
            raise


def _write(store: Store, work: Path, progress: Progress) -> None:
    for name in store.source.files:
        (work / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(store.file(name), work / name)
    sources = {name: partial(store.pieces, stored) for name, stored in {**store.shared, **store.tables, **store.extra}.items()}
    sources |= {entry.weight: partial(_as_stored, store, entry) for entry in store.linears.values()}
    # Also when the head is tied to it.
    sources[store.layout.embedding] = partial(store.pieces, store.embedding)
    shards = [(file, header, _offsets(header)) for file, header in store.source.shards]
    total = float(sum(last - first for _, _, offsets in shards for first, last in offsets.values()))
    done = 0.0
    for file, header, offsets in shards:
        text = header.encode()
        with (work / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name, (first, last) in offsets.items():
                progress(done, total, name)
                out.seek(8 + len(text) + first)
                for piece in sources[name]():
                    out.write(buffer(piece))
                done += last - first
    progress(total, total, "")


def _as_stored(store: Store, entry: LinearEntry) -> Iterator[Tensor]:
    """The exact weight in the source's order, in pieces; one that is stored transposed is a single piece."""
    if not entry.turned:
        yield from store.rows_of(entry)
    else:
        yield torch.cat(list(store.rows_of(entry))).T.contiguous()


def _offsets(header: str) -> dict[str, tuple[int, int]]:
    """First and last byte of each tensor of a safetensors file, after its header."""
    entries = json.loads(header)
    return {name: tuple(entry["data_offsets"]) for name, entry in entries.items() if name != "__metadata__"}
