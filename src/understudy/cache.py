"""The KV cache: a state for each layer. Invariant: slots below a row's length hold accepted tokens, slot = position, and never
change; slots above it are scratch, which drafts write and the target overwrites. Rolling back is setting a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import CheckpointError
from .recurrent import DEEPEST, Fold, RecurrentShape, RecurrentState, Room
from .tree import Nodes

# slots past a row's length for the nodes of a tree
SCRATCH = 320
# tokens that a row can go back at least without its sliding layers having to be read again
GOING_BACK = 256


@dataclass(frozen=True)
class LayerShape:
    """What one decoder layer keeps of each token: keys and values, what its recurrent part needs, both or neither."""

    # heads of keys and of values; 0: it has no attention
    kv_heads: int
    # numbers in a key
    key_size: int
    # numbers in a value
    value_size: int
    # tokens the layer looks back at, the token itself included; 0: all of them
    window: int = 0
    # an earlier layer whose keys and values it reads, keeping none of its own; None: it keeps its own
    reads: int | None = None
    # its recurrent part; None: it has none
    recurrent: RecurrentShape | None = None
    # do later layers read its keys and values? Then it holds those of all tokens, though it slides: when a later layer of a long
    # prompt's first tile reads them, the last tile has written its own
    shared: bool = False

    @property
    def numbers(self) -> int:
        """Numbers kept for each token."""
        return self.kv_heads * (self.key_size + self.value_size) if self.reads is None else 0

    @property
    def window_slots(self) -> int:
        """Slots that a row needs to slide, however long the context; 0 where all tokens are held."""
        return -(-(self.window + SCRATCH + GOING_BACK) // 64) * 64 if self.window and not self.shared else 0

    def slots(self, capacity: int) -> int:
        """Slots that a row of this layer takes in a cache whose rows have `capacity`."""
        return min(self.window_slots or capacity, capacity)


class LayerState(Protocol):
    """What a cache asks of each layer's state, whatever it keeps."""

    @property
    def nbytes(self) -> int: ...

    def keep(self, row: int, length: int, path: Tensor) -> None:
        """Make the nodes of `path` [m], root first, of the tree above `length`, the next m accepted tokens."""

    def reach(self, row: int, length: int, written: int) -> int:
        """The longest length, at most `length`, to which `row` can go back. Slots below `written` may have been written."""

    def rewind(self, row: int, length: int) -> None:
        """Go back to `length`, which can be reached."""

    def copy(self, row: int, to: int, length: int) -> None:
        """Give row `to` the first `length` tokens of `row`, which can be reached."""


class FullState:
    """Keys and values of one layer for every token of the context: [rows, kv heads, capacity, size].

    Pages that no row has reached are never touched, so memory grows with use up to what the plan counted."""

    def __init__(self, shape: LayerShape, rows: int, slots: int, dtype: torch.dtype, device: str = "cpu"):
        self.shape = shape
        self.keys = torch.zeros((rows, shape.kv_heads, slots, shape.key_size), dtype=dtype, device=device)
        self.values = torch.zeros((rows, shape.kv_heads, slots, shape.value_size), dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def places(self, slots: Tensor) -> Tensor:
        """Where in the tensors `slots` lie, on the device of the tensors."""
        return slots.to(self.keys.device)

    def write(self, nodes: Nodes, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [n, kv heads, size] of `nodes` at their slots."""
        rows, places = nodes.rows.to(self.keys.device), self.places(nodes.slots)
        self.keys[rows, :, places] = keys.to(self.keys.dtype)
        self.values[rows, :, places] = values.to(self.values.dtype)

    def write_one(self, row: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [kv heads, size] of a single node at its slot; in memory of the host this is faster."""
        place = slot % self.keys.shape[2]
        self.keys[row, :, place] = keys
        self.values[row, :, place] = values

    def keep(self, row: int, length: int, path: Tensor) -> None:
        moved = path != torch.arange(len(path))
        if not bool(moved.any()):
            return
        to = self.places(length + torch.arange(len(path))[moved])
        source = self.places(length + path[moved])
        for slab in (self.keys, self.values):
            slab[row][:, to] = slab[row][:, source]

    def serves(self, window: int) -> bool:
        """Does it hold what attention with this `window` (0: none) looks at?"""
        return True

    def reach(self, row: int, length: int, written: int) -> int:
        return length

    def rewind(self, row: int, length: int) -> None: ...

    def copy(self, row: int, to: int, length: int) -> None:
        self.keys[to, :, :length] = self.keys[row, :, :length]
        self.values[to, :, :length] = self.values[row, :, :length]


class SlidingState(FullState):
    """Keys and values of one layer that looks back at a window: slot s lies at place s % places, so that a row holds its window,
    the scratch above it and a little of what came before, not the whole context: [rows, kv heads, places, size].

    A prompt may be longer: its tiles are written one after another, and each looks back at its window alone."""

    def places(self, slots: Tensor) -> Tensor:
        return slots.to(self.keys.device) % self.keys.shape[2]

    def serves(self, window: int) -> bool:
        return 0 < window <= self.shape.window

    def reach(self, row: int, length: int, written: int) -> int:
        """`length` where the window of the next token is still held, else 0: what was overwritten depends, layer by layer, on
        older and older tokens."""
        oldest_wanted = max(length + 1 - self.shape.window, 0)
        oldest_held = written - self.keys.shape[2]
        return length if oldest_wanted >= oldest_held else 0

    def copy(self, row: int, to: int, length: int) -> None:
        self.keys[to] = self.keys[row]
        self.values[to] = self.values[row]


def state_of(shape: LayerShape, rows: int, capacity: int, dtype: torch.dtype, device: str = "cpu") -> FullState:
    """The state of a layer of `shape` in a cache of `rows` with `capacity` slots each."""
    slots = shape.slots(capacity)
    kind = SlidingState if slots < capacity else FullState
    return kind(shape, rows, slots, dtype, device)


class Cache:
    """A state for each layer, and one for each recurrent part; layers that read another's keys and values have its state.
    `lengths[row]` tokens of a row are accepted.

    `scratch`: nodes of a row's tree at most (None: SCRATCH). `fold`: how states of recurrent layers are folded; needed where there
    are such layers."""

    def __init__(
        self, shapes: Sequence[LayerShape], rows: int, capacity: int, dtype: torch.dtype, device: str = "cpu", *,
        scratch: int | None = None, fold: Fold | None = None,
    ):  # fmt: skip
        self.scratch = SCRATCH if scratch is None else scratch
        # each state once
        self.states: list[LayerState] = []
        # by layer: the keys and values that it reads, and what its recurrent part reads
        self.layers: list[FullState] = []
        self.recurrent: dict[int, RecurrentState] = {}
        self.shapes = tuple(shapes)
        for index, shape in enumerate(shapes):
            if shape.reads is None:
                self.layers.append(state_of(shape, rows, capacity, dtype, device))
                self.states.append(self.layers[-1])
            else:
                self.layers.append(self.layers[shape.reads])
            if shape.recurrent is not None:
                assert fold is not None, "nothing folds the states of recurrent layers"
                self.recurrent[index] = RecurrentState(shape.recurrent, Room(rows, self.scratch, dtype, device), fold)
                self.states.append(self.recurrent[index])
        self.lengths = [0] * rows
        self.capacity = capacity
        # one past the highest slot that passes have written, and trees above earlier lengths may have written
        self._written = [0] * rows

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.states)

    def layer(self, index: int, window: int) -> FullState:
        """The state of layer `index`, whose attention looks back at `window` tokens (0: all). CheckpointError where the config
        foretold a shorter window, so that not all of them are held."""
        layer = self.layers[index]
        if not layer.serves(window):
            looks = f"{window} tokens" if window else "all tokens"
            raise CheckpointError(
                f"Layer {index} looks back at {looks}, its config says {layer.shape.window}: this model is not supported yet."
            )
        return layer

    def write(self, index: int, nodes: Nodes, place: tuple[int, int] | None, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [n, kv heads, size] of `nodes` at their slots in layer `index`, unless it reads another layer's.

        place: the row and slot of a single node in memory of the host, where one is written faster."""
        if self.shapes[index].reads is not None:
            return
        if place is None:
            self.layers[index].write(nodes, keys, values)
        else:
            self.layers[index].write_one(*place, keys[0], values[0])

    def advanced(self, index: int, tops: Iterable[tuple[int, int]]) -> RecurrentState:
        """The state of the recurrent part of layer `index`, with all folded that chains up to `tops` (row, position) read."""
        state = self.recurrent[index]
        for row, position in tops:
            state.advance(row, position)
        return state

    def keep(self, row: int, path: Tensor) -> None:
        """Make the nodes of `path` [m], root first, the next m accepted tokens of `row`. Where a layer no longer holds what the
        next token looks at (after a pass over a long chain of which little was accepted), the row's length becomes 0."""
        for state in self.states:
            state.keep(row, self.lengths[row], path)
        self.lengths[row] += len(path)
        self.rewind(row, self.lengths[row])

    def rewind(self, row: int, length: int) -> int:
        """Forget the tokens of `row` from `length` on. Returns the length reached, which may be less: the tokens beyond it must be
        read again."""
        assert 0 <= length <= self.lengths[row], f"cannot rewind row {row} from {self.lengths[row]} to {length}"
        self._written[row] = self._highest(row)
        reached = self._reach(row, length)
        for state in self.states:
            state.rewind(row, reached)
        self.lengths[row] = reached
        if reached == 0:
            self._written[row] = 0
        return reached

    def copy(self, row: int, to: int, length: int) -> int:
        """Give row `to` the first `length` tokens of `row`, in place of its own. Returns the length reached, which may be less."""
        assert row != to and 0 <= length <= self.lengths[row]
        reached = self._reach(row, length)
        for state in self.states:
            state.copy(row, to, reached)
        self.lengths[to] = reached
        self._written[to] = self._highest(row) if reached else 0
        return reached

    def save(self, row: int) -> None:
        """Keep what lets `row` come back to about its length, however long its text becomes; its last save is given up."""
        for state in self.recurrent.values():
            state.save(row)

    @property
    def deepest(self) -> int:
        """Edges between a tree's root and its deepest node at most."""
        return DEEPEST if self.recurrent else self.scratch - 1

    def begin_pass(self, nodes: Nodes) -> None:
        """Note that a pass of the target is about to write the slots of `nodes`. Rows of a pass that fails must be rewound: where a
        long prompt was being read, a sliding layer may have lost what came before it."""
        for row in set(nodes.rows.tolist()):
            mine = nodes.rows == row
            end = int(nodes.slots[mine].max()) + 1
            chain = bool((nodes.slots[mine] == nodes.positions[mine]).all())
            assert chain or end - self.lengths[row] <= self.scratch, f"a tree of {end - self.lengths[row]} nodes in row {row}"
            deep = int(nodes.positions[mine].max()) - self.lengths[row]
            assert chain or deep <= self.deepest, f"a tree of {deep} levels in row {row}"
            self._written[row] = max(self._highest(row), end)

    def _highest(self, row: int) -> int:
        """One past the highest slot of `row` that may have been written: trees use the scratch, and a device's draft the slot after
        it as a dummy."""
        return max(self._written[row], self.lengths[row] + self.scratch + 1 if self.lengths[row] else 0)

    def _reach(self, row: int, length: int) -> int:
        """The longest length, at most `length`, that every layer can go back to."""
        while True:
            reached = min((state.reach(row, length, self._highest(row)) for state in self.states), default=length)
            if reached == length:
                return reached
            length = reached
