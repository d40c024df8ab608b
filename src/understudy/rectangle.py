"""Left-padded batches, as in "Batch Speculative Decoding Done Right" (arXiv 2510.22876): what ragged rows are measured
against.

The rows of a pass end in the same column of a rectangle. Before its first token a row has *pads*, slots that hold
nothing: position p of a row lies at slot `pads + p`. When rows have accepted different numbers of tokens, they are moved
until they end in the same column again (unpad, append, repad). No bit of a text depends on where its row lies: positions
are counted from its first token, and the slots of its pads are never looked at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .cache import Cache
from .layer_states import FullState, LayerShape, values_in
from .tree import AcceptedPath, Nodes

# Types whose elements are copied as they are, by their bytes: a gather copies few long elements faster than many short ones.
CARRIERS = {16: torch.complex128, 8: torch.int64, 4: torch.int32, 2: torch.int16}


@dataclass
class Alignment:
    """What lying in rectangles has cost so far. Counted are rectangles of two rows and more."""

    # Rectangles that were verified, and those of them whose rows had ended in the same column anyway.
    passes: int = 0
    still: int = 0
    # Spent on moving rows.
    seconds: float = 0.0
    # Tokens whose keys and values were moved, and the bytes of these.
    moved: int = 0
    bytes: int = 0
    # Columns of all rows in all rectangles, those of the trees included, and how many of them hold no token of a text or a draft.
    columns: int = 0
    padding: int = 0

    def plus(self, other: Alignment) -> Alignment:
        """Both together."""
        return Alignment(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def since(self, before: Alignment) -> Alignment:
        """What was added to `before`."""
        return Alignment(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))


class Layout(Protocol):
    """Where the rows of a pass lie, to the engine."""

    @property
    def alignment(self) -> Alignment:
        """What it has cost so far."""

    def align(self, rows: Sequence[int]) -> None:
        """Make `rows`, which are verified together next, lie as a pass wants them."""

    def unpad(self, row: int) -> None:
        """Make `row`, whose text is to be read on, lie as far from the end of its slots as can be."""

    def padding(self, nodes: Sequence[int]) -> list[int]:
        """How many nodes of padding a pass has beside the trees of these sizes, which are verified together."""

    def end(self, row: int) -> int:
        """The slot of the next node of `row`."""


class OwnLengths:
    """Ragged rows: each begins at its first slot and has a length of its own, so nothing is ever moved or padded."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self.alignment = Alignment()

    def align(self, rows: Sequence[int]) -> None: ...

    def unpad(self, row: int) -> None: ...

    def padding(self, nodes: Sequence[int]) -> list[int]:
        return [0] * len(nodes)

    def end(self, row: int) -> int:
        return self.cache.lengths[row]


class PaddedState(FullState):
    """Keys and values of one layer, and its index, whose rows begin at slots of their own: [kv heads, rows * slots, size].

    `keys`, `values` and `index` are views of that, [rows * slots, kv heads, slots, size]: element `row * slots + pads` is the row
    that begins after so many pads, so whoever knows where a row begins reads and writes it like any other."""

    def __init__(self, shape: LayerShape, pads: list[int], slots: int, dtype: torch.dtype, device: str = "cpu"):
        self.shape = shape
        self.pads = pads
        self.slots = slots
        places = len(pads) * slots

        # Heads of what is stored, and the size of each.
        self.sizes = [(shape.kv_heads, size) for size in shape.sizes]
        self.sizes += [(1, shape.index_size)] if shape.index_size else []
        # The view of the last place reaches beyond what any row has.
        self.storages = [torch.zeros((heads * places + slots) * size, dtype=dtype, device=device) for heads, size in self.sizes]
        views = [
            storage.as_strided((places, heads, slots, size), (size, places * size, size, 1))
            for storage, (heads, size) in zip(self.storages, self.sizes, strict=True)
        ]
        self.keys, self.values = views[0], values_in(views, shape)
        self.index = views[-1] if shape.index_size else None

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes for storage in self.storages)

    def first(self, row: int) -> int:
        """The element of the views that is `row` as it lies now."""
        return row * self.slots + self.pads[row]

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        super().keep(self.first(row), length, path)

    def copy(self, row: int, to: int, length: int) -> None:
        super().copy(self.first(row), self.first(to), length)

    def gather(self, source: Tensor, to: Tensor) -> int:
        """Move what lies at places `source` [n] to places `to` [n], numbered through all rows: one gather for each tensor. Returns
        the bytes that were moved."""
        moved = 0
        places = len(self.pads) * self.slots
        for storage, (heads, size) in zip(self.storages, self.sizes, strict=True):
            lines = _widest(storage[: heads * places * size].view(heads, places, size))
            gathered = lines[:, source]
            lines[:, to] = gathered
            moved += gathered.nbytes
        return moved


def _widest(lines: Tensor) -> Tensor:
    """`lines` [..., size] as fewer elements of more bytes, as many as `size` allows."""
    nbytes = lines.shape[-1] * lines.itemsize
    carrier = next(kind for width, kind in CARRIERS.items() if nbytes % width == 0)
    return lines.view(carrier)


class PaddedCache(Cache):
    """A cache for rows that are verified side by side in a left-padded rectangle. Every layer must hold the whole context.

    Invariant: after `align(rows)`, `pads[row] + lengths[row]` is the same for all of them."""

    def __init__(
        self, shapes: Sequence[LayerShape], rows: int, capacity: int, dtype: torch.dtype, device: str = "cpu", *,
        scratch: int,
    ):  # fmt: skip
        super().__init__(shapes, rows, capacity, dtype, device, scratch=scratch)
        whole = all(shape.recurrent is None and shape.slots(capacity) == capacity for shape in shapes)
        assert whole, "a layer does not hold the whole context"
        self.pads = [0] * rows
        self.alignment = Alignment()
        self.padded: list[PaddedState] = []
        self.layers = []
        for shape in shapes:
            if shape.reads is None:
                self.padded.append(PaddedState(shape, self.pads, capacity, dtype, device))
                self.layers.append(self.padded[-1])
            else:
                self.layers.append(self.layers[shape.reads])
        self.states = [*self.padded]
        # The rows that were aligned last.
        self._together: tuple[int, ...] = ()

    def placed(self, nodes: Nodes) -> Nodes:
        """`nodes` with the elements of the states' views in place of their rows."""
        firsts = torch.tensor([row * self.capacity + pads for row, pads in enumerate(self.pads)])
        return replace(nodes, rows=firsts[nodes.rows])

    def rewind(self, row: int, length: int) -> int:
        reached = super().rewind(row, length)
        if reached == 0:
            self.pads[row] = 0
        return reached

    def copy(self, row: int, to: int, length: int) -> int:
        self.pads[to] = 0
        return super().copy(row, to, length)

    def end(self, row: int) -> int:
        return self.pads[row] + self.lengths[row]

    def align(self, rows: Sequence[int]) -> None:
        """Make `rows` end in the same column, that of the longest of them, if they do not end in one already.

        Also where they do, but no tree would fit in the slots behind it any more."""
        self._together = tuple(rows)
        ends = {self.end(row) for row in rows}
        still = len(ends) <= 1 and max(ends, default=0) + self.scratch < self.capacity
        if len(rows) > 1:
            self.alignment.passes += 1
            self.alignment.still += still
        if not still:
            self._move(rows, max(self.lengths[row] for row in rows))

    def unpad(self, row: int) -> None:
        if self.pads[row]:
            self._move([row], self.lengths[row])

    def padding(self, nodes: Sequence[int]) -> list[int]:
        widest = max(nodes, default=0)
        rows = self._together
        if len(rows) > 1:
            padding = sum(self.pads[row] for row in rows) + sum(widest - own for own in nodes)
            self.alignment.columns += sum(self.end(row) for row in rows) + widest * len(rows)
            self.alignment.padding += padding
        return [widest - own for own in nodes]

    def _move(self, rows: Sequence[int], length: int) -> None:
        """Move `rows` until each ends at column `length`."""
        start = time.perf_counter()
        source = []
        to = []
        for row in rows:
            pads = length - self.lengths[row]
            if pads != self.pads[row]:
                places = row * self.capacity + torch.arange(self.lengths[row])
                source.append(places + self.pads[row])
                to.append(places + pads)
                self.pads[row] = pads
        if source:
            places_from, places_to = torch.cat(source), torch.cat(to)
            self.alignment.bytes += sum(state.gather(places_from, places_to) for state in self.padded)
            self.alignment.moved += len(places_from)
        self.alignment.seconds += time.perf_counter() - start


def layout_of(cache: Cache) -> Layout:
    """How the rows of `cache` lie."""
    return cache if isinstance(cache, PaddedCache) else OwnLengths(cache)
