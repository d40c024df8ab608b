"""What one layer of the KV cache keeps of every row: keys and values of all tokens, or of a window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .compression import CompressedShape
from .recurrent import RecurrentShape
from .small_keys import LINES, STEP_BYTES, stored
from .tiers.memory import arena
from .token_history import TOKEN
from .tree import AcceptedPath, Nodes

# slots past a row's length for the nodes of a tree
SCRATCH = 320
# tokens that a row can go back at least without its sliding layers having to be read again
GOING_BACK = 256


@dataclass(frozen=True)
class LayerShape:
    """What one decoder layer keeps of each token: keys and values, what its recurrent part needs, both or neither."""

    # heads of keys and of values (0: it has no attention), and the numbers in a key and in a value
    kv_heads: int
    key_size: int
    value_size: int
    # tokens the layer looks back at, the token itself included; 0: all of them
    window: int = 0
    # an earlier layer whose keys and values it reads, keeping none of its own; None: it keeps its own
    reads: int | None = None
    # its recurrent part; None: it has none
    recurrent: RecurrentShape | None = None
    # do later layers read its keys and values? Then it holds all, though it slides: the last tile has written its own by then
    shared: bool = False
    # are its keys and values kept in 8 bits?
    small: bool = False
    # tokens of a chunk, of a layer that looks back to the beginning of its token's chunk alone; 0: it has no chunks
    chunk: int = 0
    # numbers that the index by which a layer chooses the tokens that it looks at keeps of each; 0: it has none
    index_size: int = 0
    # are its keys latent states and what positions turn, of one head for all? Then its values are the first numbers of keys
    latent: bool = False
    # tokens before a node that are looked up with it; 0: none are
    history: int = 0
    # how it compresses the keys of old tokens; None: it does not
    compressed: CompressedShape | None = None
    # distances by which something is added to scores; 0: nothing is
    extent: int = 0

    @property
    def numbers(self) -> int:
        """Numbers kept for each token."""
        return self.kv_heads * sum(self.sizes) if self.reads is None else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of what is kept for each head: of a key and, unless that is a part of it, of a value."""
        return (self.key_size,) if self.latent else (self.key_size, self.value_size)

    def token_bytes(self, itemsize: int) -> int:
        """Bytes kept for each token, where a number has `itemsize` bytes or, in 8 bits, one. Keys of an index never have 8 bits."""
        index = self.index_size * itemsize + (TOKEN if self.history else 0)
        if not self.small or not self.numbers:
            return self.numbers * itemsize + index
        return self.numbers + 2 * self.kv_heads * STEP_BYTES + index

    @property
    def window_slots(self) -> int:
        """Slots that a row needs to slide, however long the context; 0 where all tokens are held."""
        return -(-(self.looks_back + SCRATCH + GOING_BACK) // 64) * 64 if self.window and not self.shared else 0

    @property
    def looks_back(self) -> int:
        """Tokens of which each is needed as it is for the one after them, that included: a window, or what an entry is made of."""
        return max(self.window, self.compressed.looks_back if self.compressed is not None else 0)

    def slots(self, capacity: int) -> int:
        """Slots that a row of this layer takes in a cache whose rows have `capacity`."""
        return min(self.window_slots or capacity, capacity)


class LayerState(Protocol):
    """What a cache asks of each layer's state, whatever it keeps."""

    @property
    def nbytes(self) -> int: ...

    @property
    def goes_back(self) -> int:
        """Tokens that every row can go back, however long its text is."""

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        """Make the nodes of `path`, of the tree above `length`, the next accepted tokens."""

    def reach(self, row: int, length: int, written: int) -> int:
        """The longest length, at most `length`, to which `row` can go back. Slots below `written` may have been written."""

    def rewind(self, row: int, length: int) -> None:
        """Go back to `length`, which can be reached."""

    def copy(self, row: int, to: int, length: int) -> None:
        """Give row `to` the first `length` tokens of `row`, which can be reached."""

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        """What is kept of tokens `start` to `end` of `row` alone: copies in memory of the host, by name."""

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None:
        """Put what was taken of the tokens from `start` on into slots of `row`, from slot `first` on."""

    def point(self, row: int, length: int) -> dict[str, Tensor]:
        """What else is needed to go on from `length`, which can be reached: copies in memory of the host, by name."""

    def resume(self, row: int, length: int, tensors: Mapping[str, Tensor]) -> None:
        """Let `row`, whose tokens were put, hold `length` of them and go on from there, by what was a `point`."""


def _untouched(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros of `shape`. Those of the host are pages that nothing has touched yet: an allocator may write what it had before."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return arena(math.prod(shape) * dtype.itemsize, huge=False).view(dtype).view(shape)


def values_in(kinds: Sequence[Tensor], shape: LayerShape) -> Tensor:
    """Values [..., size] of a layer of `shape` for which these kinds of numbers are kept: keys, and values unless they are in
    them."""
    return kinds[0][..., : shape.value_size] if shape.latent else kinds[1]


class FullState:
    """Keys and values of one layer for every token of the context: [rows, kv heads, capacity, size], or lines of `small_keys`; and
    its index, if it has one: [rows, 1, capacity, size]. Values that are latent states are a view of keys.

    Pages that no row has reached are never touched, so memory grows with use up to what the plan counted."""

    def __init__(self, shape: LayerShape, rows: int, slots: int, dtype: torch.dtype, device: str = "cpu"):
        self.shape = shape
        more = STEP_BYTES if shape.small else 0
        kept = LINES if shape.small else dtype
        kinds = [_untouched((rows, shape.kv_heads, slots, size + more), kept, device) for size in shape.sizes]
        self.keys, self.values = kinds[0], values_in(kinds, shape)
        self.index = _untouched((rows, 1, slots, shape.index_size), dtype, device) if shape.index_size else None

    @property
    def held(self) -> int:
        """Places that a row has for its tokens."""
        return self.keys.shape[2]

    @property
    def slabs(self) -> dict[str, Tensor]:
        """What is kept of tokens, by name: [rows, heads, places, size] each."""
        slabs = {"keys": self.keys} | ({} if self.shape.latent else {"values": self.values})
        return slabs if self.index is None else {**slabs, "index": self.index}

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in self.slabs.values())

    @property
    def goes_back(self) -> int:
        return self.held

    def growth(self, reached: int, slots: int) -> int:
        """Bytes that `slots` slots of a row take where `reached` of them have been written. 0 on a device: all is there."""
        if self.keys.device.type != "cpu":
            return 0
        line = self.nbytes // (self.keys.shape[0] * self.held)
        return line * max(min(slots, self.held) - min(reached, self.held), 0)

    def places(self, slots: Tensor) -> Tensor:
        """Where in the tensors `slots` lie, on the device of the tensors."""
        return slots.to(self.keys.device)

    def write(self, nodes: Nodes, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [n, kv heads, size] of `nodes` at their slots."""
        rows, places = nodes.rows.to(self.keys.device), self.places(nodes.slots)
        self.keys[rows, :, places] = stored(keys, self.keys)
        if not self.shape.latent:
            self.values[rows, :, places] = stored(values, self.values)

    def write_one(self, row: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [kv heads, size] of a single node at its slot; in memory of the host this is faster."""
        place = slot % self.held
        self.keys[row, :, place] = stored(keys, self.keys)
        if not self.shape.latent:
            self.values[row, :, place] = stored(values, self.values)

    def write_index(self, nodes: Nodes, keys: Tensor) -> None:
        """Put keys [n, size] of the index of `nodes` at their slots."""
        assert self.index is not None, "a layer without an index was given a key of one"
        self.index[nodes.rows.to(self.index.device), 0, self.places(nodes.slots)] = keys.to(self.index.dtype)

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        moves = path.moves(length, self.keys.device)
        if moves is not None:
            self._put_over(row, moves)

    def move(self, row: int, slots: Tensor, to: Tensor) -> None:
        """Put what lies in `slots` [m] of `row` in the slots `to` [m] too; all is read before any is written."""
        # one copy to a device for both
        self._put_over(row, torch.stack([to, slots]))

    def _put_over(self, row: int, moves: Tensor) -> None:
        """moves: [2, m] slots to write and to read."""
        to, source = self.places(moves)
        for slab in self.slabs.values():
            slab[row].index_copy_(1, to, slab[row].index_select(1, source))

    def serves(self, window: int) -> bool:
        """Does it hold what attention with this `window` (0: none) looks at?"""
        return True

    def reach(self, row: int, length: int, written: int) -> int:
        return length

    def rewind(self, row: int, length: int) -> None: ...

    def copy(self, row: int, to: int, length: int) -> None:
        for slab in self.slabs.values():
            slab[to, :, :length] = slab[row, :, :length]

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        return {name: slab[row, :, start:end].to("cpu", copy=True).contiguous() for name, slab in self.slabs.items()}

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None:
        skipped = max(first - start, 0)
        for name, slab in self.slabs.items():
            new = tensors[name]
            slab[row, :, start + skipped : start + new.shape[1]] = new[:, skipped:].to(slab.device)

    def point(self, row: int, length: int) -> dict[str, Tensor]:
        return {}

    def resume(self, row: int, length: int, tensors: Mapping[str, Tensor]) -> None: ...


class SlidingState(FullState):
    """Keys and values of one layer that looks back at a window: slot s lies at place s % places, so that a row holds its window,
    the scratch above it and a little of what came before, not the whole context: [rows, kv heads, places, size].

    A prompt may be longer: its tiles are written one after another, and each looks back at its window alone."""

    def __init__(self, shape: LayerShape, rows: int, slots: int, dtype: torch.dtype, device: str = "cpu"):
        super().__init__(shape, rows, slots, dtype, device)
        # by row: slots below were never written, since the text went on from a point
        self.missing = [0] * rows

    def places(self, slots: Tensor) -> Tensor:
        return slots.to(self.keys.device) % self.held

    @property
    def goes_back(self) -> int:
        return GOING_BACK

    def serves(self, window: int) -> bool:
        return 0 < window <= self.shape.window

    def reach(self, row: int, length: int, written: int) -> int:
        """`length` where the window of the next token is held, else 0: what is lost depends, layer by layer, on older tokens."""
        oldest_wanted = max(length + 1 - self.shape.looks_back, 0)
        return length if oldest_wanted >= max(written - self.held, self.missing[row]) else 0

    def rewind(self, row: int, length: int) -> None:
        if length == 0:
            self.missing[row] = 0

    def copy(self, row: int, to: int, length: int) -> None:
        for slab in self.slabs.values():
            slab[to] = slab[row]
        self.missing[to] = self.missing[row]

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        return {}

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None: ...

    def point(self, row: int, length: int) -> dict[str, Tensor]:
        """The window of the token after `length`: [kv heads, tokens, size] each."""
        places = self.places(torch.arange(max(length + 1 - self.shape.looks_back, 0), length))
        return {name: slab[row][:, places].cpu() for name, slab in self.slabs.items()}

    def resume(self, row: int, length: int, tensors: Mapping[str, Tensor]) -> None:
        start = max(length + 1 - self.shape.looks_back, 0)
        places = self.places(torch.arange(start, length))
        for name, slab in self.slabs.items():
            slab[row][:, places] = tensors[name].to(slab.device)
        self.missing[row] = start


def state_of(shape: LayerShape, rows: int, capacity: int, dtype: torch.dtype, device: str = "cpu") -> FullState:
    """The state of a layer of `shape` in a cache of `rows` with `capacity` slots each."""
    slots = shape.slots(capacity)
    return (SlidingState if slots < capacity else FullState)(shape, rows, slots, dtype, device)
