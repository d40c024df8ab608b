"""A prepared model on disk: substitute, residual and shared tensors in page-aligned extents, an index with checksums.

Files: substitute.bin (what drafts, read once), residual.bin (what streams, part by part in execution order), shared.bin
(norms, biases, tables that are looked up by token), index.json, and the source's configuration and tokenizer files as they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..codecs import Encoded, codec
from ..errors import StoreError
from ..kernels.pack import BLOCK, unblock
from ..quantizers import Tensors, quantizer
from . import index, integrity
from .entries import SUBSTITUTE, Contents, LinearEntry, Progress, Stored, part_blocks
from .files import buffer, byte_chunks, checksum, read_bytes


@dataclass(frozen=True)
class Store(Contents):
    """A Store that was opened: what its index lists, its directory, and its config.json."""

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """The Store in the directory `path`. Raises StoreError where files are missing, changed or cut short."""
        path = Path(path).expanduser()
        contents = index.load(path)
        config = index.plain_json(path / "config.json")
        integrity.check(path, contents)
        return cls(**vars(contents), path=path, config=config)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in unless told otherwise: that of all Linears' weights. Where these are of several, the
        one that the config names, as for transformers, or else the least that holds all of them."""
        types = {entry.dtype for entry in self.linears.values()}
        if len(types) > 1:
            named = str(self.config.get("dtype") or self.config.get("torch_dtype")).removeprefix("torch.")
            found = getattr(torch, named, None)
            if isinstance(found, torch.dtype) and found.is_floating_point:
                return found
        return reduce(torch.promote_types, types)

    def file(self, name: str) -> Path:
        """The path of a file of the Store; a linked source file's path is absolute and stays as it is."""
        return self.path / name

    @property
    def streamed(self) -> Path:
        """The first file that a pass reads; the substitute's where nothing streams."""
        names = (part.stored.file for part in self.parts())
        return self.file(next(names, SUBSTITUTE))

    def read(self, stored: Stored, into: Tensor | None = None) -> Tensor:
        """The tensor, checked. `into`, one-dimensional uint8 of `nbytes`, takes its bytes if given."""
        data = torch.empty(stored.nbytes, dtype=torch.uint8) if into is None else into
        read_bytes(self.file(stored.file), stored.offset, data, StoreError)
        self.check(stored, data)
        return data.view(stored.dtype).view(stored.shape)

    def pieces(self, stored: Stored) -> Iterator[Tensor]:
        """The bytes of a tensor in chunks of a few MiB; the checksum is compared after the last one."""
        digest = xxhash.xxh3_64()
        for data in byte_chunks(self.file(stored.file), stored.offset, stored.nbytes, StoreError):
            digest.update(buffer(data))
            yield data
        self._compare(stored, digest.hexdigest())

    def prove(self, stored: Stored) -> None:
        """Read a tensor for its checksum alone, a few MiB at a time. Raises StoreError, naming the place, where it is damaged."""
        deque(self.pieces(stored), maxlen=0)

    def check(self, stored: Stored, data: Tensor) -> None:
        """Raise StoreError, naming the place, unless `data` are the bytes that were written."""
        self._compare(stored, checksum([data]))

    def _compare(self, stored: Stored, found: str) -> None:
        if found != stored.checksum:
            raise StoreError(
                f"{self.file(stored.file)} is damaged in bytes {stored.offset} to {stored.offset + stored.nbytes}:"
                f" delete {self.path} and prepare it again."
            )

    def substitute(self, entry: LinearEntry) -> Tensors:
        """All tensors of a weight's substitute, checked."""
        return {name: self.read(stored) for name, stored in entry.substitute.items()}

    def rows_of(self, entry: LinearEntry) -> Iterator[Tensor]:
        """The exact weight, the rows [n, K] of one part at a time."""
        quantiser = quantizer(entry.quantizer)
        decoder = codec(entry.codec)
        substitute = self.substitute(entry)
        rows, columns = entry.shape
        for first, count in part_blocks(entry.shape, entry.dtype, entry.spec.unit) if not entry.parts else ():
            yield unblock(quantiser.cut(substitute, first, count)["weight"], min(rows - first * BLOCK, count * BLOCK))
        for part in entry.parts:
            pieces = quantiser.cut(substitute, part.first_block, part.blocks)
            blocks = decoder.decode(Encoded(self.read(part.stored), part.blocks, columns, entry.dtype, pieces))
            yield unblock(blocks, min(rows - part.first_block * BLOCK, part.blocks * BLOCK))

    def verify(self, progress: Progress | None = None) -> None:
        """Read and decode everything. Raises StoreError for the first thing that is not as it was prepared."""
        integrity.check_copied(self.path, self.source)
        total = float(sum(stored.nbytes for stored in self.whole) + sum(entry.nbytes for entry in self.linears.values()))
        done = 0.0
        for stored in self.whole:
            self.prove(stored)
            done += stored.nbytes
        for module, entry in self.linears.items():
            if progress:
                progress(done, total, module)
            if checksum(self.rows_of(entry)) != entry.checksum:
                raise StoreError(f"{module} does not decode to its source: delete {self.path} and prepare it again.")
            done += entry.nbytes
        if progress:
            progress(total, total, "")
