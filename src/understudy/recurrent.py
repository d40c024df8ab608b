"""What a recurrent layer keeps: a record for each token, and its state after every 64 tokens, folded from them.

A recurrent layer's state after a token depends on all tokens before it, so a tree would need a state for each node. It keeps a
record of each node instead, at the node's slot, and a node at position p reads the state after B = max(0, 64 * (p // 64 - 1))
tokens and then the records of its ancestors from B on, in the order of positions. So its bits depend on its own path alone, the
target overwrites what a draft recorded, and rolling back is setting a number, as with keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .recurrent_tips import NEWER, Tips
from .tree import AcceptedPath, Nodes

# tokens between two states that are folded
FOLD = 64
# a state is folded once this many tokens came after it, so that a row can go back as many without reading again
LATE = 16
# edges between a tree's root and its deepest node at most: a deeper one would read a state that is not folded yet
DEEPEST = FOLD - LATE
# records that a row needs below its length
BEHIND = 2 * FOLD + LATE


@dataclass(frozen=True)
class RecurrentShape:
    """Sizes of what one recurrent layer keeps of each token, and of its state. A layer without value heads keeps the inputs of
    its convolution alone."""

    # inputs of the short convolution
    channels: int
    # tokens that the convolution looks at, the token itself included
    taps: int
    # heads of keys (groups), each of which serves as many heads of values
    key_heads: int = 0
    # heads of values
    value_heads: int = 0
    # numbers in a key
    key_size: int = 0
    # numbers in a value
    value_size: int = 0
    # has each channel of a key a decay of its own?
    by_channel: bool = False
    # are those decays exp(rate * step), with rates of the layer's own and one step for each head, which alone is recorded?
    rated: bool = False
    # inputs of each further convolution of the layer
    further: tuple[int, ...] = ()

    def places(self, scratch: int) -> int:
        """Records that a row holds, where trees have at most `scratch` nodes: three times FOLD at least, as a tile of a prompt may
        be read from two states."""
        return BEHIND + max(scratch, DEEPEST) + 1

    @property
    def decays(self) -> int:
        """Numbers that are recorded of how one head's state decays in a step."""
        return self.key_size if self.by_channel and not self.rated else 1

    @property
    def state_bytes(self) -> int:
        """One state."""
        return 4 * self.value_heads * self.key_size * self.value_size

    def record_bytes(self, dtype: torch.dtype) -> int:
        """The record of one token, of a model whose cache has `dtype`."""
        numbers = self.key_heads * self.key_size + self.value_heads * (self.value_size + self.decays)
        return (self.channels + sum(self.further)) * dtype.itemsize + 4 * numbers

    def row_bytes(self, scratch: int, dtype: torch.dtype) -> int:
        """All that one row takes: its records, two states (and newer ones, where those are kept), and what lets it go back to the
        end of its prompt."""
        return (3 + (NEWER if self.by_channel else 0)) * self.state_bytes + (self.places(scratch) + FOLD) * self.record_bytes(dtype)


@dataclass(frozen=True)
class Room:
    """How much a cache has room for, and where."""

    # sequences side by side
    rows: int
    # nodes of a row's tree at most
    scratch: int
    # type of what keeps the model's own
    dtype: torch.dtype
    device: str = "cpu"


# Makes the state after 64 * (number + 1) tokens of a row, in its place, from the one after 64 * number and the records since.
Fold = Callable[["RecurrentState", int, int], None]


class RecurrentState:
    """Records and states of one recurrent layer.

    inputs: [rows, places, channels]; further: the same of each further convolution. keys: [rows, places, key heads, key size]
    float32. values: [rows, places, value heads, value size] float32: what is added to the state along the key, such as the delta.
    decays: [rows, places, value heads] float32: the factor of the state before that; [rows, places, value heads, key size] where
    each channel has its own. Slot s lies at place s % places.

    states: [rows, 2, value heads, key size, value size] float32; the state after 64 * n tokens lies at n % 2. The newest two are
    held: those after 64 * newest[row] tokens, and the one before."""

    def __init__(self, shape: RecurrentShape, room: Room, fold: Fold):
        rows, dtype, device = room.rows, room.dtype, room.device
        self.shape = shape
        self.fold = fold
        # [value heads, key size], where decays are made of them: set by whoever has the layer's weights
        self.rates: Tensor | None = None
        # None: states are read from the folded ones alone
        self.tips = Tips(rows) if shape.by_channel and device == "cpu" else None
        self.newest = [0] * rows
        records = shape.places(room.scratch)
        self.records = _records(shape, (rows, records), dtype, device)
        self.inputs, self.keys, self.values, self.decays, *self.further = self.records
        size = (shape.value_heads, shape.key_size, shape.value_size)
        self.states = torch.zeros((rows, 2, *size), dtype=torch.float32, device=device)
        # tokens after which a row's saved state and its last 64 records were kept; 0: none were
        self.saved = [0] * rows
        self._saved_records = _records(shape, (rows, FOLD), dtype, device)
        self._saved_states = torch.zeros((rows, *size), dtype=torch.float32, device=device)

    @property
    def nbytes(self) -> int:
        held = (*self.records, self.states, *self._saved_records, self._saved_states)
        return sum(tensor.nbytes for tensor in held)

    @property
    def goes_back(self) -> int:
        return LATE

    @property
    def places(self) -> int:
        """Records that a row holds."""
        return self.inputs.shape[1]

    def convolved(self, number: int) -> RecurrentState:
        """Itself, with the inputs of convolution `number` of the layer for those of its first; -1: the last."""
        if number == 0:
            return self
        own = copy.copy(self)
        own.inputs = (self.inputs, *self.further)[number]
        return own

    def advance(self, row: int, position: int) -> None:
        """Fold what a chain that reads `position` of `row` needs. The records below it must be there."""
        while self.newest[row] < position // FOLD - 1:
            self.fold(self, row, self.newest[row])
            self.newest[row] += 1

    def walked(self, row: int, position: int) -> None:
        """Note that whoever ran a chain of `row` up to `position` has folded what it read."""
        self.newest[row] = max(self.newest[row], position // FOLD - 1)

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        """Make the nodes of `path`, of the tree above `length`, the next accepted tokens."""
        moves = path.moves(length, self.inputs.device)
        if moves is not None:
            to, source = self._places(moves)
            for tensor in self.records:
                tensor[row, to] = tensor[row, source]
        # before a state is folded: one that is kept may be of nodes that were not accepted
        if self.tips is not None:
            self.tips.keep(row, length, path)
        self.advance(row, length + len(path) - LATE + FOLD)

    def reach(self, row: int, length: int, written: int) -> int:
        """`length` where it is held, else the saved length below it, or 0."""
        if self._holds(row, length):
            return length
        return self.saved[row] if self.saved[row] <= length else 0

    def rewind(self, row: int, length: int) -> None:
        """Go back to `length`, which can be reached."""
        if self.tips is not None:
            self.tips.rewind(row, length)
        if length == 0:
            self.newest[row] = 0
            self.states[row, 0] = 0
        elif not self._holds(row, length):
            self._restore(row)
        if length < self.saved[row]:
            self.saved[row] = 0

    def copy(self, row: int, to: int, length: int) -> None:
        """Give row `to` the first `length` tokens of `row`, which can be reached."""
        for tensor in (*self.records, self.states, *self._saved_records, self._saved_states):
            tensor[to] = tensor[row]
        self.newest[to] = self.newest[row]
        self.saved[to] = self.saved[row]
        if self.tips is not None:
            self.tips.copy(row, to)
        self.rewind(to, length)

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        return {}

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None: ...

    def point(self, row: int, length: int) -> dict[str, Tensor]:
        """The state 64 tokens before `length`, a multiple of 64, and the records since."""
        if self.newest[row] * FOLD > length:
            assert self.saved[row] == length, f"row {row} has no state after {length} tokens"
            records = {f"records {i}": saved[row].to("cpu", copy=True) for i, saved in enumerate(self._saved_records)}
            return {"state": self._saved_states[row].to("cpu", copy=True), **records}
        before = length // FOLD - 1
        places = self._places(FOLD * before + torch.arange(FOLD))
        records = {f"records {i}": held[row, places].cpu() for i, held in enumerate(self.records)}
        return {"state": self.states[row, before % 2].to("cpu", copy=True), **records}

    def resume(self, row: int, length: int, tensors: Mapping[str, Tensor]) -> None:
        self.saved[row] = length
        self._saved_states[row] = tensors["state"].to(self.states.device)
        for i, saved in enumerate(self._saved_records):
            saved[row] = tensors[f"records {i}"].to(saved.device)
        self._restore(row)
        if self.tips is not None:
            self.tips.rewind(row, 0)
            self.tips.rewind(row, length)

    def save(self, row: int) -> None:
        """Keep what lets `row` go back to the last 64 tokens' end that is folded, however long its text becomes."""
        newest = self.newest[row]
        if newest == 0:
            return
        self.saved[row] = FOLD * newest
        places = self._places(FOLD * (newest - 1) + torch.arange(FOLD))
        for saved, held in zip(self._saved_records, self.records, strict=True):
            saved[row] = held[row, places]
        self._saved_states[row] = self.states[row, (newest - 1) % 2]

    def _restore(self, row: int) -> None:
        before = self.saved[row] // FOLD - 1
        places = self._places(FOLD * before + torch.arange(FOLD))
        for saved, held in zip(self._saved_records, self.records, strict=True):
            held[row, places] = saved[row]
        self.states[row, before % 2] = self._saved_states[row]
        self.fold(self, row, before)
        self.newest[row] = before + 1

    def _holds(self, row: int, length: int) -> bool:
        """Are the states and records there that tokens from `length` on read? What is written later overwrites none of them
        before a newer state is folded."""
        return self.newest[row] == 0 or length >= FOLD * self.newest[row]

    def _places(self, slots: Tensor) -> Tensor:
        return slots.to(self.inputs.device) % self.places


def fold_by_channel(state: RecurrentState, row: int, number: int) -> None:
    """Make the state of `row` after FOLD * (number + 1) tokens, from the one after FOLD * number tokens and the records since,
    where each channel of a key has a decay of its own."""
    places = (FOLD * number + torch.arange(FOLD, device=state.keys.device)) % state.places
    shared = state.shape.value_heads // state.shape.key_heads
    folded = state.states[row, number % 2].clone()
    for key, value, decay in zip(state.keys[row, places], state.values[row, places], state.decays[row, places], strict=True):
        folded.mul_(factors(state, decay)[..., None])
        folded.addcmul_(key.repeat_interleave(shared, 0)[..., None], value[:, None])
    state.states[row, (number + 1) % 2] = folded


def factors(state: RecurrentState, decays: Tensor) -> Tensor:
    """[..., value heads, key size]: the factors of channels that the recorded `decays` stand for."""
    return torch.exp(state.rates * decays[..., None]) if state.shape.rated and state.rates is not None else decays


def _records(shape: RecurrentShape, count: tuple[int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    heads = shape.value_heads
    decays = (heads, shape.decays) if shape.by_channel and not shape.rated else (heads,)
    return (
        torch.zeros((*count, shape.channels), dtype=dtype, device=device),
        torch.zeros((*count, shape.key_heads, shape.key_size), dtype=torch.float32, device=device),
        torch.zeros((*count, heads, shape.value_size), dtype=torch.float32, device=device),
        torch.zeros((*count, *decays), dtype=torch.float32, device=device),
        *(torch.zeros((*count, channels), dtype=dtype, device=device) for channels in shape.further),
    )


def tops(nodes: Nodes) -> list[tuple[int, int]]:
    """For each row of `nodes`, which lie in memory of the host, the highest position it reads: (row, position)."""
    found: dict[int, int] = {}
    for row, position in zip(nodes.rows.tolist(), nodes.positions.tolist(), strict=True):
        found[row] = max(found.get(row, 0), position)
    return list(found.items())


def begins(nodes: Nodes) -> list[tuple[int, int]]:
    """For each row of `nodes`, which lie in memory of the host, up to which position states must be folded before a device walks
    over them: (row, position). On its way it folds what a chain reads, so that is a chain's first position, a tree's highest."""
    found: dict[int, int] = {}
    branched = set()
    for row, slot, position in zip(nodes.rows.tolist(), nodes.slots.tolist(), nodes.positions.tolist(), strict=True):
        found.setdefault(row, position)
        if slot != position:
            branched.add(row)
    return [(row, top if row in branched else found[row]) for row, top in tops(nodes)]
