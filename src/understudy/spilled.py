"""Keys and values of layers that see the whole text, of which fast memory holds the first block and the latest tokens: all between
them lie in a file, and the target reads them from there in the order of positions.

A draft sees what fast memory holds, as if the text were shorter: wrong guesses cost time, never a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from .layer_states import SCRATCH, FullState, LayerShape, values_in
from .tiers import ReadSettings
from .tiers.memory import ALIGNMENT, arena
from .tiers.spill import SpillFile
from .tree import AcceptedPath, Nodes

# Tokens at the beginning of a text that stay in fast memory: models look at them from everywhere (arXiv 2309.17453).
FIRST = 64
# Tokens that go to the file together.
STEP = 256
# Positions that come from the file together: those of one head are one read.
CHUNK = 1024
# Rooms for what comes from the file: one is used, the others are being filled.
ROOMS = 4
# Latest tokens of a text that fast memory holds, where the user does not say.
LATEST = 1024


def fast_slots(latest: int) -> int:
    """Slots of a row that lie in fast memory, where it holds `latest` tokens at least: and those that go next, and a tree."""
    return -(-(FIRST + latest + STEP + SCRATCH + 1) // 64) * 64


def spillable(shape: LayerShape, itemsize: int) -> bool:
    """Can a layer of `shape` spill? It must look at keys and values of all tokens, and STEP of either must be whole
    pages."""
    pages = all(STEP * size * itemsize % ALIGNMENT == 0 for size in shape.sizes)
    otherwise = shape.window_slots or shape.small or shape.chunk or shape.index_size or shape.extent
    return shape.numbers > 0 and pages and not otherwise


@dataclass(frozen=True)
class Spill:
    """How a cache spills."""

    # Where the file goes.
    directory: Path
    read: ReadSettings
    # Latest tokens of a text that fast memory holds at least.
    latest: int
    # Threads that attend side by side.
    threads: int = 1


def heads_together(kv_heads: int, threads: int) -> int:
    """Heads of keys that come from the file together: as many as threads, in equal groups."""
    return max(heads for heads in range(1, min(kv_heads, max(threads, 1)) + 1) if kv_heads % heads == 0)


def room_bytes(shape: LayerShape, itemsize: int, threads: int) -> int:
    """Bytes of one room for what comes from the file of a layer."""
    return heads_together(shape.kv_heads, threads) * CHUNK * sum(shape.sizes) * itemsize


def chunks_of(first: int, end: int) -> range:
    """Where the chunks begin that have the positions `first` to `end`, all of them FIRST at least."""
    return range((first - FIRST) // CHUNK * CHUNK + FIRST, end, CHUNK)


class SpillStore:
    """The file of a cache's layers, and the rooms that its bytes come into."""

    def __init__(self, spill: Spill, shapes: Sequence[LayerShape], rows: int, capacity: int, dtype: torch.dtype) -> None:
        self.spill = spill
        # Rows have whole chunks in the file.
        self.positions = -(-capacity // CHUNK) * CHUNK
        self.nbytes = sum(shape.numbers for shape in shapes) * self.positions * rows * dtype.itemsize
        self.file = SpillFile(spill.directory, self.nbytes, spill.read)
        largest = max(room_bytes(shape, dtype.itemsize, spill.threads) for shape in shapes)
        self.rooms = [arena(largest, huge=False) for _ in range(ROOMS)]
        # Bytes of the file that are given out.
        self._taken = 0

    def region(self, nbytes: int) -> int:
        """The offset of `nbytes` of the file that nobody else has."""
        offset = self._taken
        self._taken += nbytes
        assert self._taken <= self.nbytes, f"{self._taken} bytes of {self.nbytes}"
        return offset


class SpilledState(FullState):
    """Keys and values of one layer: those of the first FIRST tokens and of the latest lie in `keys` and `values`
    [rows, kv heads, places, size], and the file has those of the tokens FIRST up to `bases[row]` + FIRST.

    Slot s lies at place s - bases[row], the first ones at their own. Bases are multiples of STEP. Between passes they follow from a
    row's length alone: the same in all layers."""

    def __init__(self, shape: LayerShape, rows: int, store: SpillStore, dtype: torch.dtype) -> None:
        super().__init__(shape, rows, fast_slots(store.spill.latest), dtype)
        self.bases = [0] * rows
        self.store = store
        self.group = heads_together(shape.kv_heads, store.spill.threads)
        self._sizes = [size * dtype.itemsize for size in shape.sizes]
        lines = [size * store.positions * shape.kv_heads for size in self._sizes]
        self._line = sum(lines)
        self._values = lines[0]
        self._begin = store.region(self._line * rows)

    @property
    def goes_back(self) -> int:
        return self.store.positions

    @property
    def _kinds(self) -> tuple[bool, ...]:
        """Whether each kind of numbers that is kept is values; those that are a part of keys are not."""
        return (False, True)[: len(self._sizes)]

    def base_for(self, length: int) -> int:
        """The base of a row of `length` tokens."""
        return max(length - self.store.spill.latest - FIRST, 0) // STEP * STEP

    def local(self, nodes: Nodes) -> Nodes:
        """`nodes` as if their texts were shorter by what lies in the file: slots are places of `keys` and `values` then."""
        bases = torch.tensor(self.bases)[nodes.rows]
        if not bool(bases.any()):
            return nodes
        tail = torch.where(nodes.tail < 0, nodes.tail, nodes.tail - bases[:, None])
        shifted = nodes.slots - bases, nodes.positions - bases, nodes.prefix - bases
        return replace(nodes, slots=shifted[0], positions=shifted[1], prefix=shifted[2], tail=tail)

    def write(self, nodes: Nodes, keys: Tensor, values: Tensor) -> None:
        for row in set(nodes.rows.tolist()):
            self._make_room(row, int(nodes.slots[nodes.rows == row].max()) + 1)
        super().write(self.local(nodes), keys, values)

    def write_one(self, row: int, slot: int, keys: Tensor, values: Tensor) -> None:
        self._make_room(row, slot + 1)
        super().write_one(row, slot - self.bases[row], keys, values)

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        super().keep(row, length - self.bases[row], path)

    def rewind(self, row: int, length: int) -> None:
        self._move(row, self.base_for(length), length)

    def copy(self, row: int, to: int, length: int) -> None:
        base = self.base_for(length)
        for start in range(FIRST, base + FIRST, STEP):
            for second in self._kinds:
                self._write(to, second, start, self.read(row, second, start, start + STEP))
        self.bases[to] = base
        for values, slab in enumerate(self.slabs.values()):
            slab[to, :, :FIRST] = slab[row, :, :FIRST]
            if length > FIRST:
                slab[to, :, FIRST : length - base] = self.read(row, bool(values), base + FIRST, length)

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        return {name: self.read(row, second, start, end) for name, second in zip(self.slabs, self._kinds, strict=True)}

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None:
        end = start + tensors["keys"].shape[1]
        for piece in range(max(first, start), end, 64):
            stop = min(piece + 64, end)
            self._make_room(row, stop)
            base = self.bases[row]
            for name, slab in self.slabs.items():
                slab[row, :, piece - base : stop - base] = tensors[name][:, piece - start : stop - start]

    def resume(self, row: int, length: int, tensors: Mapping[str, Tensor]) -> None:
        self.rewind(row, length)

    def stream(
        self, row: int, wanted: Sequence[tuple[int, int]], kinds: Sequence[bool] = ()
    ) -> Iterator[list[Tensor]]:  # fmt: skip
        """For each of `wanted` (the first head of a group, where a chunk begins) in turn keys and values, or what is kept of
        `kinds` (values instead of keys?), [1, heads of a group, CHUNK, size]: what the file has of that chunk, at its place there.
        They hold until the next ones are asked for. Raises TransferError."""
        asked = kinds or self._kinds
        edges = [0, *accumulate(self.group * CHUNK * self._sizes[second] for second in asked)]
        spans = list(zip(asked, pairwise(edges), strict=True))
        pieces = [[piece for second, (first, _) in spans for piece in self._pieces(row, second, *one, first)] for one in wanted]
        for room in self.store.file.stream(pieces, self.store.rooms):
            slabs = [(self.values if second else self.keys, room[first:last]) for second, (first, last) in spans]
            found = [here.view(slab.dtype).view(1, self.group, CHUNK, slab.shape[3]) for slab, here in slabs]
            yield found if kinds else [found[0], values_in(found, self.shape)]

    def _pieces(self, row: int, second: bool, head: int, start: int, place: int) -> list[tuple[int, int, int]]:
        """What to read of keys, or of values, of a chunk from position `start` on, and where each head of its group goes in a room,
        from `place` on."""
        size = self._sizes[second]
        end = min(start + CHUNK, self.bases[row] + FIRST)
        return [
            (self._offset(row, second, head + number, start), (end - start) * size, place + number * CHUNK * size)
            for number in range(self.group)
        ]

    def _offset(self, row: int, second: bool, head: int, position: int) -> int:
        """Where the file has the key, or the value, of a head at a position from FIRST on."""
        line = self._begin + self._line * row + (self._values if second else 0)
        return line + (head * self.store.positions + position - FIRST) * self._sizes[second]

    def _make_room(self, row: int, end: int) -> None:
        """Let there be places for the slots of `row` below `end`."""
        if end - self.bases[row] > self.keys.shape[2]:
            self._move(row, self.base_for(end), end)

    def _move(self, row: int, base: int, length: int) -> None:
        """Change the base of `row`: what falls out of its places goes to the file, what belongs there below `length` comes back."""
        old = self.bases[row]
        if base == old:
            return
        moved = abs(base - old)
        places = self.keys.shape[2]
        assert base < old or moved <= places - FIRST, f"from {old} to {base}: {places} places"
        for values, slab in enumerate(self.slabs.values()):
            latest = slab[row, :, FIRST:]
            if base > old:
                for start in range(0, moved, STEP):
                    self._write(row, bool(values), old + FIRST + start, latest[:, start : start + STEP])
                latest[:, : places - FIRST - moved] = latest[:, moved:].clone()
                continue
            back = self.read(row, bool(values), base + FIRST, min(max(length, base + FIRST), base + places))
            latest[:, : back.shape[1]] = back
        self.bases[row] = base

    def _write(self, row: int, second: bool, position: int, lines: Tensor) -> None:
        """Put `lines` [kv heads, STEP, size] of the tokens from `position` on into the file."""
        for head, line in enumerate(lines):
            self.store.file.write(self._offset(row, second, head, position), line)

    def read(self, row: int, second: bool, start: int, end: int) -> Tensor:
        """Copies of keys, or values, of the tokens `start` to `end` of `row` [kv heads, tokens, size], from wherever they are."""
        slab, base = (self.values if second else self.keys), self.bases[row]
        found = torch.empty(slab.shape[1], max(end - start, 0), slab.shape[3], dtype=slab.dtype)
        for low, high, shift in ((0, FIRST, 0), (base + FIRST, base + slab.shape[2], base)):
            first, last = max(start, low), min(end, high)
            if first < last:
                found[:, first - start : last - start] = slab[row, :, first - shift : last - shift]
        first, last = max(start, FIRST), min(end, base + FIRST)
        if first < last:
            self._from_file(row, second, (first, last), found[:, first - start : last - start])
        return found

    def _from_file(self, row: int, second: bool, span: tuple[int, int], out: Tensor) -> None:
        """Fill `out` with what the file has of the tokens of `span`."""
        chunks = chunks_of(*span)
        wanted = [(head, chunk) for head in range(0, out.shape[0], self.group) for chunk in chunks]
        for (head, chunk), (found,) in zip(wanted, self.stream(row, wanted, (second,)), strict=True):
            first, last = max(span[0], chunk), min(span[1], chunk + CHUNK)
            out[head : head + self.group, first - span[0] : last - span[0]] = found[0, :, first - chunk : last - chunk]
