"""The KV cache. Invariant: slots below a row's length hold accepted tokens, slot = position, and never change; slots above it
are scratch, which drafts write and the target overwrites. Rolling back is setting a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tree import Nodes


@dataclass(frozen=True)
class LayerShape:
    """What one decoder layer keeps of each token."""

    # heads of keys and of values
    kv_heads: int
    # numbers in a key
    key_size: int
    # numbers in a value
    value_size: int
    # tokens the layer looks back at, the token itself included; 0: all of them
    window: int = 0

    @property
    def numbers(self) -> int:
        """Numbers kept for each token."""
        return self.kv_heads * (self.key_size + self.value_size)


class FullState:
    """Keys and values of one layer for every token of the context: [rows, kv heads, capacity, size].

    Pages that no row has reached are never touched, so memory grows with use up to what the plan counted."""

    def __init__(self, shape: LayerShape, rows: int, capacity: int, dtype: torch.dtype, device: str):
        self.shape = shape
        self.keys = torch.zeros((rows, shape.kv_heads, capacity, shape.key_size), dtype=dtype, device=device)
        self.values = torch.zeros((rows, shape.kv_heads, capacity, shape.value_size), dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, nodes: Nodes, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [n, kv heads, size] of `nodes` at their slots."""
        rows, slots = nodes.rows.to(self.keys.device), nodes.slots.to(self.keys.device)
        self.keys[rows, :, slots] = keys.to(self.keys.dtype)
        self.values[rows, :, slots] = values.to(self.values.dtype)

    def write_one(self, row: int, slot: int, key: Tensor, value: Tensor) -> None:
        """Put the key and value [kv heads, size] of one node at its slot; faster than `write`, where the host knows the slot."""
        self.keys[row, :, slot] = key
        self.values[row, :, slot] = value

    def move(self, row: int, source: Tensor, to: Tensor) -> None:
        """Copy what slots `source` [m] of `row` hold to slots `to` [m]."""
        source, to = source.to(self.keys.device), to.to(self.keys.device)
        for slab in (self.keys, self.values):
            slab[row][:, to] = slab[row][:, source]


class Cache:
    """A state for each layer. `lengths[row]` tokens of a row are accepted."""

    def __init__(self, shapes: Sequence[LayerShape], rows: int, capacity: int, dtype: torch.dtype, device: str = "cpu"):
        self.layers = [FullState(shape, rows, capacity, dtype, device) for shape in shapes]
        self.lengths = [0] * rows
        self.capacity = capacity

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def keep(self, row: int, path: Tensor) -> None:
        """Make the nodes of `path` [m], root first, the next m accepted tokens of `row`."""
        length, count = self.lengths[row], len(path)
        moved = path != torch.arange(count)
        if bool(moved.any()):
            to = length + torch.arange(count)[moved]
            source = length + path[moved]
            for layer in self.layers:
                layer.move(row, source, to)
        self.lengths[row] = length + count

    def rewind(self, row: int, length: int) -> int:
        """Forget the tokens of `row` from `length` on. Returns the length reached, which may be less: what lies beyond it must be
        read again."""
        assert 0 <= length <= self.lengths[row], f"cannot rewind row {row} from {self.lengths[row]} to {length}"
        self.lengths[row] = length
        return length
