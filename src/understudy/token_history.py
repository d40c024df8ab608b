"""The tokens of a text as one layer of the cache keeps them: for layers that look some tokens up together with those before them.

A node's token lies at the node's slot, as its key does, so what a node finds before it is of its own path."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .tree import AcceptedPath, Nodes

# Bytes that a token takes.
TOKEN = 4


class TokenHistory:
    """Tokens of every slot, [rows, capacity] int32 in memory of the host, for a layer that looks back at `behind` of them."""

    def __init__(self, behind: int, rows: int, capacity: int) -> None:
        self.behind = behind
        self.tokens = torch.zeros((rows, capacity), dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes

    @property
    def goes_back(self) -> int:
        return self.tokens.shape[1]

    def before(self, nodes: Nodes) -> Tensor:
        """Note the tokens of `nodes`, whose ancestors must have been noted or be among them; returns the last tokens of each one's
        path [n, behind + 1], its own the last: int64, -1 before the start of the text."""
        self.tokens[nodes.rows, nodes.slots] = nodes.tokens.to(torch.int32)
        positions = nodes.positions[:, None] - torch.arange(self.behind, -1, -1)
        slots = nodes.slots_at(positions.clamp(min=0))
        return torch.where(positions >= 0, self.tokens[nodes.rows[:, None], slots].long(), -1)

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        moves = path.moves(length, self.tokens.device)
        if moves is not None:
            to, source = moves
            self.tokens[row, to] = self.tokens[row, source]

    def reach(self, row: int, length: int, written: int) -> int:
        return length

    def rewind(self, row: int, length: int) -> None: ...

    def copy(self, row: int, to: int, length: int) -> None:
        self.tokens[to, :length] = self.tokens[row, :length]

    def taken(self, row: int, start: int, end: int) -> dict[str, Tensor]:
        return {}

    def put(self, row: int, start: int, tensors: Mapping[str, Tensor], first: int) -> None: ...

    def point(self, row: int, length: int) -> dict[str, Tensor]:
        """The tokens that the one after `length` looks back at."""
        return {"tokens": self.tokens[row, max(length - self.behind, 0) : length].clone()}

    def resume(self, row: int, length: int, tensors: Mapping[str, Tensor]) -> None:
        self.tokens[row, length - len(tensors["tokens"]) : length] = tensors["tokens"]
