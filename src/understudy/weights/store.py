"""A prepared model on disk: substitute, residual and shared tensors in page-aligned extents, an index with checksums.

Files: substitute.bin (what drafts, read once), residual.bin (what streams, part by part in execution order), shared.bin
(norms, biases, the embedding table), index.json, and the source's configuration and tokenizer files as they were."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..codecs import codec
from ..errors import StoreError
from ..kernels.pack import BLOCK, blocks_of, unblock
from ..quantizers import Tensors, quantizer
from .checkpoint import STORE_INDEX
from .files import ALIGNMENT, aligned, buffer, checksum, flat, read_bytes
from .layout import ModelLayout

INDEX = STORE_INDEX
SUBSTITUTE, RESIDUAL, SHARED = "substitute.bin", "residual.bin", "shared.bin"
PART_BYTES = 8 << 20
CHUNK = 8 << 20  # of what is copied as it is
Progress = Callable[[float, float, str], None]  # done bytes, all bytes, what is being worked on


@dataclass(frozen=True)
class Stored:
    """A tensor's bytes in one file: of the Store, or (an absolute path) of the source. `checksum` is xxh3_64 of them."""

    file: str
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: str

    @property
    def lead(self) -> int:
        """Bytes before it on its first page: none, unless it lies in the source."""
        return self.offset % ALIGNMENT

    @property
    def span(self) -> int:
        """Bytes to read from the start of its first page on."""
        return self.lead + self.nbytes


@dataclass(frozen=True)
class Part:
    """Some whole blocks of a weight: the unit that streams. `stored` is the codec's bytes."""

    first_block: int
    blocks: int
    stored: Stored


@dataclass(frozen=True)
class LinearEntry:
    """One weight [N, K]. A weight whose quantiser is `exact` is all substitute and has no parts."""

    module: str
    weight: str  # the source tensor
    shape: tuple[int, int]
    dtype: torch.dtype
    quantizer: str
    substitute: Mapping[str, Stored]
    codec: str
    parts: tuple[Part, ...]
    checksum: str  # of the source tensor's bytes, row after row


@dataclass(frozen=True)
class Source:
    """What the Store was made from, enough to make it again."""

    name: str
    fingerprint: str
    shards: tuple[tuple[str, str], ...]  # file name and safetensors header
    files: Mapping[str, str]  # copied file and its checksum
    linked: Mapping[str, tuple[int, int]]  # file that parts lie in, its size and mtime in ns


@dataclass(frozen=True)
class Recipe:
    """How the Store was made. Two Stores of one fingerprint and recipe are alike."""

    quantizer: str
    head_quantizer: str
    codec: str


@dataclass(frozen=True)
class Store:
    """`linears` is in execution order. `extra` holds tensors the model does not use, kept for export."""

    path: Path
    config: dict[str, Any]
    layout: ModelLayout
    source: Source
    recipe: Recipe
    linears: Mapping[str, LinearEntry]
    shared: Mapping[str, Stored]
    embedding: Stored
    extra: Mapping[str, Stored]

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        from .index import load

        return load(Path(path).expanduser())

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def streamed(self) -> Path:
        """The first file that a pass reads; of a Store that streams nothing, the substitute's."""
        names = (part.stored.file for entry in self.linears.values() for part in entry.parts)
        return self.file(next(names, SUBSTITUTE))

    def read(self, stored: Stored, into: Tensor | None = None) -> Tensor:
        """The tensor, checked. `into`, one-dimensional uint8 of `nbytes`, takes its bytes if given."""
        data = torch.empty(stored.nbytes, dtype=torch.uint8) if into is None else into
        read_bytes(self.file(stored.file), stored.offset, data, StoreError)
        self.check(stored, data)
        return data.view(stored.dtype).view(stored.shape)

    def pieces(self, stored: Stored) -> Iterator[Tensor]:
        """The bytes of a tensor, some at a time, checked when the last are asked for."""
        digest = xxhash.xxh3_64()
        for start in range(0, stored.nbytes, CHUNK):
            data = torch.empty(min(CHUNK, stored.nbytes - start), dtype=torch.uint8)
            read_bytes(self.file(stored.file), stored.offset + start, data, StoreError)
            digest.update(buffer(data))
            yield data
        self._compare(stored, digest.hexdigest())

    def read_rows(self, stored: Stored, start: int, stop: int) -> Tensor:
        """Some rows of a row-major tensor, unchecked: for gathering from the embedding table."""
        row = stored.nbytes // stored.shape[0]
        tensor = torch.empty((stop - start, *stored.shape[1:]), dtype=stored.dtype)
        read_bytes(self.file(stored.file), stored.offset + start * row, flat(tensor), StoreError)
        return tensor

    def check(self, stored: Stored, data: Tensor) -> None:
        """StoreError, naming the place, unless `data` are the bytes that were written."""
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
        """The exact weight, some rows [n, K] at a time."""
        maker, decoder = quantizer(entry.quantizer), codec(entry.codec)
        substitute = self.substitute(entry)
        rows, columns = entry.shape
        if not entry.parts:
            yield unblock(substitute["weight"], rows)
        for part in entry.parts:
            pieces = maker.cut(substitute, part.first_block, part.blocks)
            blocks = decoder.decode(self.read(part.stored), part.blocks, columns, entry.dtype, pieces)
            yield unblock(blocks, min(rows - part.first_block * BLOCK, part.blocks * BLOCK))

    def verify(self, progress: Progress | None = None) -> None:
        """Read and decode everything; StoreError names the first thing that is not as it was prepared."""
        from .index import check_files

        check_files(self)
        whole = [*self.shared.values(), self.embedding, *self.extra.values()]
        total = float(sum(stored.nbytes for stored in whole) + sum(map(nbytes, self.linears.values())))
        done = 0.0
        for stored in whole:
            deque(self.pieces(stored), maxlen=0)
            done += stored.nbytes
        for module, entry in self.linears.items():
            if progress:
                progress(done, total, module)
            if checksum(self.rows_of(entry)) != entry.checksum:
                raise StoreError(f"{module} does not decode to its source: delete {self.path} and prepare it again.")
            done += nbytes(entry)
        if progress:
            progress(total, total, "")


def nbytes(entry: LinearEntry) -> int:
    """Bytes of the source weight."""
    return entry.shape[0] * entry.shape[1] * entry.dtype.itemsize


def part_blocks(shape: tuple[int, int], dtype: torch.dtype) -> list[tuple[int, int]]:
    """(first block, blocks) of each part: as few parts of at most PART_BYTES as will do, evenly cut."""
    rows, columns = shape
    total = blocks_of(rows)
    most = max(PART_BYTES // (columns * BLOCK * dtype.itemsize), 1)
    count = -(-total // most)
    edges = [total * i // count for i in range(count + 1)]
    return [(first, last - first) for first, last in pairwise(edges)]


def extent_bytes(stored: Stored) -> int:
    """Bytes on disk, padding included: what a direct read of the extent transfers."""
    return aligned(stored.nbytes)


def plain_json(path: Path) -> Any:
    """The content of a JSON file of the Store."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StoreError(f"{path} cannot be read ({problem}): delete {path.parent} and prepare it again.") from None
