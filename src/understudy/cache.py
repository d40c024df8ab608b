"""Keys and values. Invariant: slots below a row's length hold accepted tokens, slot = position, and never change;
above it is scratch, which drafts write and the target overwrites. Rollback is setting a number."""

import torch
from torch import Tensor

from .tree import Nodes


class Cache:
    """One slab per layer, [rows, kv heads, capacity, head_dim]. `lengths[row]` tokens of a row are accepted.

    Pages that no row has reached are never touched, so memory grows with use up to what the plan counted."""

    def __init__(
        self, layers: int, heads: int, head_dim: int, rows: int, capacity: int, dtype: torch.dtype, device: str = "cpu"
    ):
        shape = (rows, heads, capacity, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.lengths = [0] * rows
        self.capacity = capacity

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def write(self, layer: int, nodes: Nodes, keys: Tensor, values: Tensor) -> None:
        """keys, values: [n, kv heads, head_dim] of `nodes`, put at their slots."""
        rows, slots = nodes.rows.to(keys.device), nodes.slots.to(keys.device)
        self.keys[layer][rows, :, slots] = keys.to(self.keys[layer].dtype)
        self.values[layer][rows, :, slots] = values.to(self.values[layer].dtype)

    def keep(self, row: int, path: Tensor) -> None:
        """The nodes of `path` [m], root first, become the next m accepted tokens of `row`."""
        length, count = self.lengths[row], len(path)
        if not bool((path == torch.arange(count)).all()):
            moved = path != torch.arange(count)
            to = length + torch.arange(count)[moved]
            source = length + path[moved]
            for slab in (*self.keys, *self.values):
                slab[row][:, to.to(slab.device)] = slab[row][:, source.to(slab.device)]
        self.lengths[row] = length + count

    def rewind(self, row: int, length: int) -> None:
        assert 0 <= length <= self.lengths[row], f"cannot rewind row {row} from {self.lengths[row]} to {length}"
        self.lengths[row] = length
