"""How rows multiply by the exact weights of the experts that they go to: only those of experts with rows are brought.

The rows of an expert, of all tiles together, are multiplied part by part. A row's bits depend on it and on the weights alone, as
in all products: on how many others go to the same expert, they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..kernels.expert_kernels import ExpertKernels
from ..kernels.pack import BLOCK
from .exact_linear import ExactLinear, Piece
from .part_runs import PartRun
from .routed import Routed

if TYPE_CHECKING:
    from .supply import PartRef, Supply

# rows of what is multiplied together where a product needs one shape always
FIXED = 32


class ExpertSupply:
    """Multiplies routed rows with the weights of `supply`."""

    def __init__(self, supply: Supply) -> None:
        self.supply = supply
        # by Linear and expert: the parts of its matrix
        self._parts: dict[int, list[list[PartRef]]] = {}
        # by the first Linear of some experts: all of theirs, which are used one after the other
        self._together: dict[int, list[int]] = {}
        entries = [linear.entry for linear in supply.linears]
        for mixture, indices in groupby(range(len(entries)), key=lambda index: entries[index].mixture):
            if mixture:
                own = list(indices)
                self._together[own[0]] = own
                self._parts |= {index: _by_expert(supply.by_linear[index], supply.linears[index]) for index in own}

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
        counts: list[int] = torch.bincount(experts, minlength=linear.entry.experts).tolist()[: linear.entry.experts]
        out = self._room(index, x)
        rows = [slice(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
        if linear.device.own_memory:
            self._in_order(index, rows, x, out)
        else:
            self._hint(index, counts)
            for expert, own in enumerate(rows):
                for data, first, count in self._arriving(index, expert, out.shape[1]) if counts[expert] else ():
                    self._times(linear, (data, first, count), first - expert * out.shape[1], x[own], out[own])
        found = out.flatten(1)
        if order is not None:
            found = torch.empty_like(found).index_copy_(0, order, found)
        return list(torch.split(found, lengths))

    def _hint(self, index: int, counts: Sequence[int]) -> None:
        """Tell the ring what these experts will use, once for all of their Linears."""
        supply = self.supply
        if supply.ring is None or index not in self._together:
            return
        wanted = [
            supply.berths[part.number].haul
            for own in self._together[index]
            for parts, count in zip(self._parts[own], counts, strict=True)
            for part in parts
            if count and part.number not in supply.residents
        ]
        supply.ring.hint(wanted)

    def _room(self, index: int, x: Tensor) -> Tensor:
        """Of any content [rows of x, blocks of an expert's matrix, 64]."""
        entry = self.supply.linears[index].entry
        return x.new_empty(len(x), entry.shape[0] // entry.experts // BLOCK, BLOCK)

    def _by_runs(self, index: int, kernels: ExpertKernels, tiles: Sequence[Routed]) -> list[Tensor]:
        """The same on a device, which alone knows who goes where: all experts come, and multiply what goes to them."""
        made = [self._room(index, tile.rows) for tile in tiles]

        def use(run: PartRun, blocks: Tensor) -> None:
            for tile, out in zip(tiles, made, strict=True):
                assert tile.starts is not None
                kernels.multiply(tile.rows.contiguous(), tile.starts, blocks, run.first, out)

        self.supply.by_runs(index, use)
        return [out.flatten(1) for out in made]

    def _in_order(self, index: int, rows: Sequence[slice], x: Tensor, out: Tensor) -> None:
        """The rows of each expert times its matrix, where all experts come in their order."""
        linear, each = self.supply.linears[index], out.shape[1]
        for held in self.supply.arriving(index, together=False):
            for part, data in held:
                end = part.first_block + part.blocks
                for expert in range(part.first_block // each, -(-end // each)):
                    own, first = rows[expert], max(part.first_block, expert * each)
                    if own.stop > own.start:
                        whole = part.nbytes > 0
                        count = min(end, (expert + 1) * each) - first
                        # all of a Linear that lies here as it is
                        piece = (data, first, count) if whole else (data[first : first + count], first, count)
                        self._times(linear, piece, first - expert * each, x[own], out[own])

    def _times(self, linear: ExactLinear, piece: Piece, place: int, x: Tensor, out: Tensor) -> None:
        """Put x times the blocks of `piece` in `out` [rows, blocks, 64], from block `place` on."""
        product = linear.product(x.dtype)
        if product is not None:
            operand, _ = linear.operand(*piece)
            product([(operand, place)])([x], out)
        else:
            blocks = linear.blocks(*piece).to(x.dtype)
            _by_tiles(x, blocks, out[:, place : place + len(blocks)])

    def _arriving(self, index: int, expert: int, blocks: int) -> Iterator[tuple[Tensor, int, int]]:
        """The matrix of an expert of Linear `index`, part by part: its bytes until the next is asked for, first block, how many."""
        supply = self.supply
        first = expert * blocks
        for part in self._parts[index][expert]:
            if part.number in supply.residents:
                data = supply.residents[part.number]
                # all of a Linear that lies here as it is
                yield (data, part.first_block, part.blocks) if part.nbytes else (data[first : first + blocks], first, blocks)
                continue
            slot = supply.next_of(part)
            try:
                supply.bytes_used += part.nbytes
                start = supply.berths[part.number].start + part.lead
                yield slot.data[start : start + part.nbytes], part.first_block, part.blocks
            finally:
                slot.release()


def _by_expert(parts: Sequence[PartRef], linear: ExactLinear) -> list[list[PartRef]]:
    """The parts of each expert's matrix; where the weight lies here as it is, they share the one there is."""
    experts = linear.entry.experts
    if len(parts) == 1 and not parts[0].nbytes:
        return [list(parts)] * experts
    blocks = linear.entry.shape[0] // experts // BLOCK
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
