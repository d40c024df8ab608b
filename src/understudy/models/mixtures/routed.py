"""Rows on their way to the experts that they go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routed:
    """Rows of a pass or of one of its tiles, each with the expert whose matrix it is multiplied by: the rows of one expert follow
    each other, and experts come in the order of their numbers."""

    # [m, K]: a node's row stands here once for each expert that it goes to
    rows: Tensor
    # [m], ascending; their number, of a row that goes to none: its products are of any content
    experts: Tensor
    # int32 [experts + 1], where a device must not be asked: the first row of each, and one past the last; None: the host counts
    starts: Tensor | None = None

    @classmethod
    def of(cls, hidden: Tensor, chosen: Tensor, experts: int) -> tuple[Routed, Tensor, Tensor]:
        """The rows of `hidden` [n, K] for the experts `chosen` [n, k] of each, of which there are `experts`: with, for each routed
        row, the place in `chosen` that it is of, and int64 [n, k], where the routed rows of each node are, ascending.

        A number that no expert has is left out: some routers so say that a node goes to fewer. Its places are past the last row."""
        flat = chosen.reshape(-1)
        order = torch.argsort(flat, stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        sorted_experts = flat[order]
        count = int((sorted_experts < experts).sum())
        order, sorted_experts = order[:count], sorted_experts[:count]
        routed = cls(hidden[order // chosen.shape[1]], sorted_experts)
        return routed, order, places.view(chosen.shape).clamp(max=count).sort(dim=1).values

    def with_rows(self, rows: Tensor) -> Routed:
        """Other rows on the same way."""
        return Routed(rows, self.experts, self.starts)

    def counts(self, experts: int) -> list[int]:
        """How many rows each of so many experts has."""
        found: list[int] = torch.bincount(self.experts, minlength=experts).tolist()
        return found[:experts]

    def groups(self, experts: int) -> Iterator[tuple[int, slice]]:
        """Each of so many experts that has rows, and where they are."""
        start = 0
        for expert, count in enumerate(self.counts(experts)):
            if count:
                yield expert, slice(start, start + count)
                start += count


# What a Linear or the experts of a layer multiply.
Rows = Tensor | Routed


def rows_in(tiles: Sequence[Rows], rows: int) -> Tensor:
    """All rows of `tiles` that are multiplied: the first `rows`, behind which there is padding, or all that are routed."""
    if isinstance(tiles[0], Routed):
        return torch.cat([tile.rows for tile in tiles if isinstance(tile, Routed)])
    return torch.cat([tile for tile in tiles if isinstance(tile, Tensor)])[:rows]


def product(x: Rows, weight: Tensor) -> Tensor:
    """x @ weight.T for rows [n, K] and a weight [N, K]; of routed rows each times the matrix of its expert, for all matrices
    [experts, N, K]."""
    if isinstance(x, Tensor):
        return x @ weight.T
    counts = x.counts(len(weight))
    pieces = torch.split(x.rows, counts)
    return torch.cat([rows @ weight[expert].T for expert, rows in enumerate(pieces) if len(rows) or not expert])
