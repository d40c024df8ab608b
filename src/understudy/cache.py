"""The KV cache: a state for each layer. Invariant: slots below a row's length hold accepted tokens, slot = position, and never
change; slots above it are scratch, which drafts write and the target overwrites. Rolling back is setting a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .compressed import CompressedState
from .errors import CheckpointError
from .layer_states import SCRATCH, FullState, LayerShape, LayerState, state_of
from .recurrent import DEEPEST, Fold, RecurrentState, Room
from .spilled import Spill, SpilledState, SpillStore, spillable
from .token_history import TokenHistory
from .tree import AcceptedPath, Nodes


class Cache:
    """A state for each layer, and one for each recurrent part; layers that read another's keys and values have its state.
    `lengths[row]` tokens of a row are accepted.

    `device`: the memory that states lie in, or that of each layer. `scratch`: nodes of a row's tree at most (None: SCRATCH).
    `fold`: how states of recurrent layers are folded; needed where there are such layers. `spill`: how old tokens of layers that
    see all go to a file; None: they stay in memory."""

    def __init__(
        self, shapes: Sequence[LayerShape], rows: int, capacity: int, dtype: torch.dtype, device: str | Sequence[str] = "cpu", *,
        scratch: int | None = None, fold: Fold | None = None, spill: Spill | None = None,
    ):  # fmt: skip
        # Layers that slide have room for no more.
        self.scratch = SCRATCH if scratch is None else min(scratch, SCRATCH)
        # each state once
        self.states: list[LayerState] = []
        # by layer: the keys and values that it reads, what its recurrent part reads, and the tokens that it looks up
        self.layers: list[FullState] = []
        self.recurrent: dict[int, RecurrentState] = {}
        self.histories: dict[int, TokenHistory] = {}
        self.shapes = tuple(shapes)
        # where keys and values go that fast memory does not hold; None: nothing spills
        spilling = [shape for shape in shapes if spill is not None and spillable(shape, dtype.itemsize)]
        self.spill_store = SpillStore(spill, spilling, rows, capacity, dtype) if spill is not None else None
        memories = [device] * len(shapes) if isinstance(device, str) else device
        for index, (shape, memory) in enumerate(zip(shapes, memories, strict=True)):
            if shape.reads is None:
                if self.spill_store is not None and shape in spilling:
                    self.layers.append(SpilledState(shape, rows, self.spill_store, dtype))
                elif shape.compressed is not None:
                    self.layers.append(CompressedState(shape, rows, capacity, self.scratch, dtype))
                else:
                    self.layers.append(state_of(shape, rows, capacity, dtype, memory))
                self.states.append(self.layers[-1])
            else:
                self.layers.append(self.layers[shape.reads])
            if shape.recurrent is not None:
                assert fold is not None, "nothing folds the states of recurrent layers"
                self.recurrent[index] = RecurrentState(shape.recurrent, Room(rows, self.scratch, dtype, memory), fold)
                self.states.append(self.recurrent[index])
            if shape.history:
                self.histories[index] = TokenHistory(shape.history, rows, capacity)
                self.states.append(self.histories[index])
        self.lengths = [0] * rows
        self.capacity = capacity
        # one past the highest slot that passes have written, and trees above earlier lengths may have written
        self._written = [0] * rows
        # one past the highest slot that each row has ever reached: memory that was taken stays
        self._reached = [0] * rows

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.states)

    def growth(self, tokens: int, row: int | None = None) -> int:
        """Bytes of memory that a text of `tokens` tokens, with its trees, takes beyond what `row` has taken so far; None: the row
        that has taken most. 0 on a device: all is taken at once."""
        reached = max(self._reached) if row is None else self._reached[row]
        slots = tokens + self.scratch
        return sum(state.growth(reached, slots) for state in self.states if isinstance(state, FullState))

    def placed(self, nodes: Nodes) -> Nodes:
        """`nodes` as the states number their rows."""
        return nodes

    @cached_property
    def spilled(self) -> SpilledState | None:
        """One of the states that spill, which all have the same bases between passes; None: none does."""
        return next((state for state in self.layers if isinstance(state, SpilledState)), None)

    def spills(self, index: int) -> bool:
        """Do old tokens of layer `index` lie in a file?"""
        return self.spilled is not None and isinstance(self.layers[index], SpilledState)

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
        accepted = AcceptedPath(path)
        for state in self.states:
            state.keep(row, self.lengths[row], accepted)
        self.lengths[row] += len(path)
        self.rewind(row, self.lengths[row])

    def move(self, row: int, slots: Tensor, to: Tensor) -> None:
        """Put what layers hold of the nodes in scratch slots `slots` [m] of `row` in scratch slots `to` [m] as well. All states
        must be of keys and values of all tokens, in fast memory."""
        # Each memory is told once.
        there: dict[torch.device, Tensor] = {}
        for state in self.states:
            assert type(state) is FullState, f"nodes of a {type(state).__name__} do not lie in any slots"
            where = state.keys.device
            if where not in there:
                there[where] = torch.stack([slots, to]).to(where)
            state.move(row, *there[where])

    def rewind(self, row: int, length: int) -> int:
        """Forget the tokens of `row` from `length` on. Returns the length reached, which may be less: the tokens beyond it must be
        read again."""
        assert 0 <= length <= self.lengths[row], f"cannot rewind row {row} from {self.lengths[row]} to {length}"
        self._written[row] = self._highest(row)
        reached = self.reach(row, length)
        for state in self.states:
            state.rewind(row, reached)
        self.lengths[row] = reached
        if reached == 0:
            self._written[row] = 0
        return reached

    def copy(self, row: int, to: int, length: int) -> int:
        """Give row `to` the first `length` tokens of `row`, in place of its own. Returns the length reached, which may be less."""
        assert row != to and 0 <= length <= self.lengths[row]
        reached = self.reach(row, length)
        # A copy that fails half way leaves an empty row.
        self.rewind(to, 0)
        for state in self.states:
            state.copy(row, to, reached)
        self.lengths[to] = reached
        self._reached[to] = max(self._reached[to], reached)
        self._written[to] = self._highest(row) if reached else 0
        return reached

    def reach(self, row: int, length: int) -> int:
        """The longest length, at most `length`, to which every layer of `row` can go back."""
        while True:
            reached = min((state.reach(row, length, self._highest(row)) for state in self.states), default=length)
            if reached == length:
                return reached
            length = reached

    @property
    def needs_points(self) -> bool:
        """Do layers keep what cannot be put together of tokens, so that a row goes on from a point alone?"""
        return any(type(state) not in (FullState, SpilledState) for state in self.states)

    def block_bytes(self, tokens: int) -> int:
        """Bytes of what `taken` gives of so many tokens."""
        held = [state for state in self.layers if type(state) in (FullState, SpilledState)]
        entries = sum(state.taken_bytes(tokens) for state in self.layers if isinstance(state, CompressedState))
        return sum(state.nbytes // (state.keys.shape[0] * state.keys.shape[2]) for state in held) * tokens + entries

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        """Copies of what layers keep of tokens `start` to `end` of `row` alone, in memory of the host, by name."""
        return _named([state.taken(row, start, end) for state in self.states])

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None:
        """Put what was taken of tokens from `start` on into the slots of `row` from `first` on, which is its length at least."""
        assert first >= self.lengths[row], f"slots from {first} on of a row of {self.lengths[row]} tokens"
        for index, state in enumerate(self.states):
            state.put(row, start, _own(index, tensors), first)

    def point(self, row: int, length: int) -> dict[str, Tensor]:
        """What else is needed to go on from `length` of `row`, which can be reached and is a multiple of 64."""
        return _named([state.point(row, length) for state in self.states])

    def resume(self, row: int, length: int, tensors: Mapping[str, Tensor]) -> None:
        """Let `row` hold the `length` tokens that were put into it and go on from there, by what was a `point`."""
        for index, state in enumerate(self.states):
            state.resume(row, length, _own(index, tensors))
        self.lengths[row] = self._written[row] = length
        self._reached[row] = max(self._reached[row], length)

    def drop(self) -> None:
        """Give back the memory of all states: only their shapes are left, and no token is read any more."""
        for state in self.states:
            for name, tensors in vars(state).items():
                if isinstance(tensors, Tensor):
                    setattr(state, name, tensors.to("meta"))
                elif isinstance(tensors, tuple) and all(isinstance(one, Tensor) for one in tensors):
                    setattr(state, name, tuple(one.to("meta") for one in tensors))

    def close(self) -> None:
        """Give the disk's room back. Further calls do nothing."""
        if self.spill_store is not None:
            self.spill_store.file.close()

    def save(self, row: int) -> None:
        """Keep what lets `row` come back to about its length, however long its text becomes; its last save is given up."""
        for state in self.recurrent.values():
            state.save(row)

    @property
    def goes_back(self) -> int:
        """Tokens that every row can go back, however long its text is."""
        return min((state.goes_back for state in self.states), default=self.capacity)

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
            self._reached[row] = max(self._reached[row], end)

    def _highest(self, row: int) -> int:
        """One past the highest slot of `row` that may have been written: trees use the scratch, and a device's draft the slot after
        it as a dummy."""
        return max(self._written[row], self.lengths[row] + self.scratch + 1 if self.lengths[row] else 0)


def _named(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all states, each under the number of its state."""
    return {f"{index} {name}": tensor for index, state in enumerate(states) for name, tensor in state.items()}


def _own(index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of `tensors` that are state number `index`'s."""
    mark = f"{index} "
    return {name.removeprefix(mark): tensor for name, tensor in tensors.items() if name.startswith(mark)}
