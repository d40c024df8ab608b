"""What a Store holds, as its index lists it: extents of files, parts, weights, and where all of it came from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..kernels.pack import BLOCK, blocks_of
from ..tiers.memory import ALIGNMENT, aligned
from .layout import LinearSpec, ModelLayout
from .recipe import Recipe

INDEX = "index.json"
SUBSTITUTE, RESIDUAL, SHARED = "substitute.bin", "residual.bin", "shared.bin"
# The most bytes of exact weights in one part.
PART_BYTES = 8 << 20

# Called with the bytes that are done, all bytes, and the name of what is being worked on.
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Stored:
    """A tensor's bytes in one file."""

    # The name of a file of the Store, or the absolute path of a file of the source.
    file: str
    # Of its first byte in the file.
    offset: int
    # Its own bytes, without padding.
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    # xxh3_64 of its bytes.
    checksum: str

    @property
    def lead(self) -> int:
        """Bytes between the start of its first page and its first byte: 0 in files of the Store."""
        return self.offset % ALIGNMENT

    @property
    def span(self) -> int:
        """Bytes to read from the start of its first page on."""
        return self.lead + self.nbytes

    @property
    def padded(self) -> int:
        """Bytes it takes in a file of the Store, padding included: what a direct read transfers."""
        return aligned(self.nbytes)


@dataclass(frozen=True)
class Part:
    """Whole blocks of one weight: the unit that streams."""

    # The number of the first block of 64 outputs, and how many blocks follow one another.
    first_block: int
    blocks: int
    # The codec's bytes.
    stored: Stored


@dataclass(frozen=True)
class LinearEntry:
    """One weight [N, K]. A weight whose quantiser is `exact` is all substitute and has no parts."""

    # The name of the nn.Linear, and of the source tensor it multiplies by; for experts see `LinearSpec`.
    module: str
    weight: str
    shape: tuple[int, int]
    dtype: torch.dtype
    quantizer: str
    # The tensors of the substitute, by name.
    substitute: Mapping[str, Stored]
    codec: str
    # In the order of the weight's blocks.
    parts: tuple[Part, ...]
    # xxh3_64 of the weight's bytes, row after row.
    checksum: str
    # Does the source hold it transposed?
    turned: bool = False
    experts: int = 0
    chosen: int = 0
    pieces: tuple[str, ...] = ()

    @property
    def mixture(self) -> str:
        """The module whose experts it belongs to; empty where it is an nn.Linear."""
        return self.module.rpartition(".")[0] if self.experts else ""

    @property
    def spec(self) -> LinearSpec:
        """What a layout says of it."""
        return LinearSpec(self.module, self.weight, self.shape, self.turned, self.experts, self.chosen, self.pieces)

    @property
    def nbytes(self) -> int:
        """Bytes of the source weight."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def extents(self) -> list[Stored]:
        """All extents of the weight: substitute, then parts."""
        return [*self.substitute.values(), *(part.stored for part in self.parts)]


@dataclass(frozen=True)
class Source:
    """What a Store was made from, enough to make the source again."""

    # The hub's name of the checkpoint, or its directory; the first Stores have it as the user wrote it.
    name: str
    # `Checkpoint.fingerprint`.
    fingerprint: str
    # Name and safetensors header of each weight file.
    shards: tuple[tuple[str, str], ...]
    # Name and checksum of each copied file.
    files: Mapping[str, str]
    # Path of each source file that the Store points to, with its size in bytes and its mtime in nanoseconds.
    linked: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Contents:
    """All that the index of a Store lists."""

    layout: ModelLayout
    source: Source
    recipe: Recipe
    # By module name, in the order of a forward pass.
    linears: Mapping[str, LinearEntry]
    # Norms and biases by tensor name.
    shared: Mapping[str, Stored]
    embedding: Stored
    # Further tables that are looked up by token, by tensor name.
    tables: Mapping[str, Stored]
    # Tensors that the model does not use, kept for export.
    extra: Mapping[str, Stored]

    @property
    def looked_up(self) -> list[Stored]:
        """What is looked up by token: the embedding table first."""
        return [self.embedding, *self.tables.values()]

    @property
    def whole(self) -> list[Stored]:
        """All tensors that are stored as they are."""
        return [*self.shared.values(), *self.looked_up, *self.extra.values()]

    @property
    def extents(self) -> list[Stored]:
        """All extents of all files."""
        return [*self.whole, *(stored for entry in self.linears.values() for stored in entry.extents)]

    def parts(self) -> Iterator[Part]:
        """All parts, in the order of a pass."""
        for entry in self.linears.values():
            yield from entry.parts


def part_blocks(shape: tuple[int, int], dtype: torch.dtype, unit: int) -> list[tuple[int, int]]:
    """(first block, number of blocks) of each part: as few parts of at most PART_BYTES as will do, evenly cut, of each `unit` rows
    on their own. Those are the units of `LinearSpec.unit`."""
    rows, columns = shape
    assert rows % unit == 0 and (unit == rows or unit % BLOCK == 0), f"units of {unit} rows of {shape}"
    each = blocks_of(unit)
    most = max(PART_BYTES // (columns * BLOCK * dtype.itemsize), 1)
    count = -(-each // most)
    edges = [each * i // count for i in range(count + 1)]
    return [(start + first, last - first) for start in range(0, blocks_of(rows), each) for first, last in pairwise(edges)]
