"""How rows multiply by the exact weights of the experts that they go to: only those of experts with rows are brought. A device with
memory of its own gets all of them, in a fixed order, since the host does not wait there until it is known which.

The rows of an expert, of all tiles together, are multiplied part by part. A row's bits depend on it and on the weights alone, as
in all products: on how many others go to the same expert, they do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...kernels.expert_kernels import ExpertKernels
from ...kernels.pack import BLOCK
from ..stream.exact_linear import ExactLinear, Piece
from ..stream.part_runs import PartRun
from .routed import Routed

if TYPE_CHECKING:
    from ..stream.supply import PartRef, Supply

# rows of what is multiplied together where a product needs one shape always
FIXED = 32


class ExpertParts:
    """Where the matrices of experts are among the parts of a model's `linears`, which are `by_linear`."""

    def __init__(self, linears: Sequence[ExactLinear], by_linear: Sequence[list[PartRef]]) -> None:
        # by Linear and expert: the parts of its matrix
        self.parts: dict[int, list[list[PartRef]]] = {}
        # by the first Linear of some experts: all of theirs, which are used one after the other
        self.together: dict[int, list[int]] = {}
        entries = [linear.entry for linear in linears]
        for mixture, indices in groupby(range(len(entries)), key=lambda index: entries[index].mixture):
            if mixture:
                own = list(indices)
                self.together[own[0]] = own
                self.parts |= {index: _by_expert(by_linear[index], linears[index]) for index in own}


class ExpertSupply:
    """Multiplies routed rows with the weights of `supply`. Made for one product: a supply that kept it would outlive its last
    user."""

    def __init__(self, supply: Supply) -> None:
        self.supply = supply

    def multiply(self, index: int, tiles: Sequence[Routed]) -> list[Tensor]:
        """Of each tile [m, K], whose rows go to their experts: [m, rows of an expert's matrix]."""
        linear = self.supply.linears[index]
        kernels = linear.device.expert_kernels()
        if kernels is not None and all(tile.starts is not None for tile in tiles):
            return self._by_runs(index, kernels, tiles)
        lengths = [len(tile.rows) for tile in tiles]
        experts = torch.cat([tile.experts for tile in tiles])
        order = torch.argsort(experts, stable=True) if len(tiles) > 1 else None
        x = torch.cat([tile.rows for tile in tiles])[order] if order is not None else tiles[0].rows
        counts: list[int] = torch.bincount(experts, minlength=linear.entry.experts).tolist()
        self._hint(index, counts)
        out = self._room(index, x)
        start = 0
        # those past the last are of rows that go to none
        for expert, count in enumerate(counts[: linear.entry.experts]):
            if count or self._all_come:
                rows = slice(start, start + count)
                self._times(index, expert, x[rows], out[rows])
                start += count
        found = out.flatten(1)
        if order is not None:
            found = torch.empty_like(found).index_copy_(0, order, found)
        return list(torch.split(found, lengths))

    def _room(self, index: int, x: Tensor) -> Tensor:
        """Of any content [rows of x, blocks of an expert's matrix, 64]."""
        return x.new_empty(len(x), self.supply.linears[index].entry.spec.outputs // BLOCK, BLOCK)

    @property
    def _all_come(self) -> bool:
        """Does the ring bring all experts, whoever goes to them?"""
        return self.supply.ring is not None and self.supply.ring.route.fixed

    def _by_runs(self, index: int, kernels: ExpertKernels, tiles: Sequence[Routed]) -> list[Tensor]:
        """The same on a device, which alone knows who goes where: all experts come, and multiply what goes to them."""
        made = [self._room(index, tile.rows) for tile in tiles]

        def use(run: PartRun, blocks: Tensor) -> None:
            for tile, out in zip(tiles, made, strict=True):
                assert tile.starts is not None
                kernels.multiply(tile.rows.contiguous(), tile.starts, blocks, run.first, out)

        self.supply.by_runs(index, use)
        return [out.flatten(1) for out in made]

    def _hint(self, index: int, counts: Sequence[int]) -> None:
        """Tell the ring what these experts will use, once for all of their Linears."""
        supply = self.supply
        if supply.ring is None or self._all_come or index not in supply.experts.together:
            return
        wanted = [
            supply.berths[part.number].haul
            for own in supply.experts.together[index]
            for parts, count in zip(supply.experts.parts[own], counts, strict=True)
            for part in parts
            if count and part.number not in supply.residents and supply.berths[part.number].first
        ]
        supply.ring.hint(wanted)

    def _times(self, index: int, expert: int, x: Tensor, out: Tensor) -> None:
        """out [rows, blocks, 64] = x times the matrix of an expert."""
        linear = self.supply.linears[index]
        product = linear.product(x.dtype)
        before = expert * out.shape[1]
        together = product is not None and not linear.one_by_one
        for held in self.supply.arriving(self.supply.experts.parts[index][expert], together):
            pieces = [_piece(part, data, before, out.shape[1]) for part, data in held]
            if product is not None and len(x):
                operands = [linear.operand(*piece) for piece in pieces]
                product([(operand, first - before) for operand, first in operands])([x], out)
                continue
            for data, first, count in pieces if len(x) else ():
                blocks = linear.blocks(data, first, count).to(x.dtype)
                _by_tiles(x, blocks, out[:, first - before : first - before + count])


def _piece(part: PartRef, data: Tensor, before: int, blocks: int) -> Piece:
    """What `part` has of an expert's `blocks`, which begin with block number `before`: all of it, unless it is the whole Linear."""
    return (data, part.first_block, part.blocks) if part.nbytes else (data[before : before + blocks], before, blocks)


def _by_expert(parts: Sequence[PartRef], linear: ExactLinear) -> list[list[PartRef]]:
    """The parts of each expert's matrix; where the weight lies here as it is, they share the one there is."""
    experts = linear.entry.experts
    if len(parts) == 1 and not parts[0].nbytes:
        return [list(parts)] * experts
    blocks = linear.entry.spec.outputs // BLOCK
    found: list[list[PartRef]] = [[] for _ in range(experts)]
    for part in parts:
        found[part.first_block // blocks].append(part)
    return found


def _by_tiles(x: Tensor, blocks: Tensor, out: Tensor) -> None:
    """out [rows, nb, 64] = x @ blocks [nb, K, 64], FIXED rows at a time, the last of them padding."""
    for start in range(0, len(x), FIXED):
        rows = x[start : start + FIXED]
        padded = nn.functional.pad(rows, (0, 0, 0, FIXED - len(rows)))
        out[start : start + FIXED].copy_(torch.matmul(padded, blocks).transpose(0, 1)[: len(rows)])
