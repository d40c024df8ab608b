"""Where each part of the exact weights comes from: it is kept in fast memory for good, or the ring brings it.

Both ways end in the same product of the same blocks in the same order, so the plan never changes a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..devices import ExactProduct
from ..kernels.exact_operand import Operand
from ..kernels.pack import BLOCK, blocks_of
from ..tiers.ring import Ring, Slot
from .exact_linear import ExactLinear
from .expert_supply import ExpertSupply
from .hauls import Haul
from .part_runs import Lying, PartRun, lying_in, rows_times, runs_of
from .routed import Routed

# Multiplies the rows of tiles by some exact weights: tiles, and where results go.
RowsTimes = Callable[[Sequence[Tensor], Tensor], None]


@dataclass(frozen=True)
class PartRef:
    """One part of the model: a few blocks of one Linear."""

    # Its number among all parts of the model.
    number: int
    # The Linear's place in the order of a pass.
    linear: int
    first_block: int
    blocks: int
    # Bytes of the part as stored.
    nbytes: int
    # Bytes that are fetched before the part's own.
    lead: int = 0


@dataclass(frozen=True)
class Stretch:
    """What a device uses in one go on the way through a Linear: runs of one haul, or some that stay in fast memory."""

    # the first part of the haul, which the ring brings; None: `data` is there for good
    brought: PartRef | None
    data: Tensor | None
    # bytes that come of the parts' own
    nbytes: int
    runs: tuple[PartRun, ...]


@dataclass(frozen=True)
class Berth:
    """Where a part is found once the ring has brought it."""

    # the number of its haul
    haul: int
    # where it begins in that
    start: int

    @property
    def first(self) -> bool:
        """Is it the first of the haul?"""
        return self.start == 0


class Supply:
    """Multiplies with the exact weights of each Linear.

    `linears`: how each multiplies; `residents`: bytes of parts in fast memory, by number; `ring` streams the `hauls` of the
    others."""

    def __init__(
        self,
        parts: Sequence[PartRef],
        linears: Sequence[ExactLinear],
        residents: Mapping[int, Tensor],
        hauls: Sequence[Haul],
        ring: Ring | None,
    ):
        self.by_linear: list[list[PartRef]] = [[] for _ in linears]
        for part in parts:
            self.by_linear[part.linear].append(part)
        self.linears = linears
        self.residents = residents
        self.berths = {
            part: Berth(number, start)
            for number, haul in enumerate(hauls)
            for part, start in zip(haul.parts, haul.starts, strict=True)
        }
        self.ring = ring
        self.bytes_used = 0
        self.experts = ExpertSupply(self)
        # by Linear: the steps of a device that has a product of rows
        self._steps: dict[int, list[Stretch]] = {}
        # by Linear: what multiplies by it where it stays in fast memory
        self._products: dict[int, RowsTimes | None] = {}
        # by their first part and how many there are: operands that came together, and what multiplies by them
        self._together: dict[tuple[int, int], tuple[Sequence[tuple[Operand, int]], RowsTimes]] = {}

    def fused(self, dtype: torch.dtype) -> bool:
        """Whether every Linear multiplies just the rows there are."""
        return all(linear.product(dtype) is not None for linear in self.linears)

    def multiply(self, index: int, tiles: Sequence[Any], rows: int) -> list[Tensor]:
        """Tiles [any, K], in all `rows` rows and then padding -> tiles [the same, N]. Linear `index` is brought once for all; where
        tiles are routed rows, only the matrices of their experts."""
        if isinstance(tiles[0], Routed):
            return self.experts.multiply(index, tiles)
        linear, given = self.linears[index], tiles[0]
        heights = [tile.shape[0] for tile in tiles]
        outputs = linear.entry.shape[0]
        blocks = blocks_of(outputs)
        product = linear.product(given.dtype)
        every = given.new_empty((sum(heights), blocks, BLOCK))
        taken = every[:rows]
        if product is not None:
            # Padding, which is not multiplied like all other rows.
            every[rows:] = 0
        if product is None and (by_rows := linear.device.row_product()) is not None:
            self.by_runs(index, partial(rows_times, by_rows, tiles, every.view(len(tiles), heights[0], blocks, BLOCK)))
        elif product is None:
            for held in self.arriving(index, together=False):
                pieces = [(data, part.first_block, part.blocks) for part, data in held]
                linear.multiply(pieces, tiles, every.view(len(tiles), heights[0], blocks, BLOCK))
        elif (kept := self._kept(index, product)) is not None:
            kept(tiles, taken)
        else:
            for held in self.arriving(index, together=not linear.one_by_one):
                self._multiplying(linear, product, held)(tiles, taken)
        return list(torch.split(every.view(len(every), -1)[:, :outputs], heights))

    def by_runs(self, index: int, use: Callable[[PartRun, Tensor], None]) -> None:
        """Have all runs of Linear `index` used with their weights [blocks, K, 64], haul by haul."""
        if index not in self._steps:
            self._steps[index] = self._steps_of(index)
        self._announce(index)
        for step in self._steps[index]:
            slot = None if step.brought is None else self.next_of(step.brought)
            try:
                data = step.data if slot is None else slot.data
                assert data is not None, "what is not brought is here"
                for run in step.runs:
                    use(run, run.blocks(data))
                self.bytes_used += step.nbytes
            finally:
                if slot is not None:
                    slot.release()

    def _steps_of(self, index: int) -> list[Stretch]:
        """What a device uses together of Linear `index`, in order."""
        linear = self.linears[index]
        steps = []
        for parts in self._stretches(index):
            first = parts[0]
            if first.number in self.residents:
                data, lying = lying_in([(self.residents[p.number], p.first_block, p.blocks) for p in parts])
                steps.append(Stretch(None, data, 0, tuple(runs_of(linear, lying))))
            else:
                lying = [Lying(self.berths[p.number].start + p.lead, p.nbytes, p.first_block, p.blocks) for p in parts]
                steps.append(Stretch(first, None, sum(p.nbytes for p in parts), tuple(runs_of(linear, lying))))
        return steps

    def _stretches(self, index: int) -> Iterator[list[PartRef]]:
        """The parts of Linear `index`: those of each haul together, and neighbours that lie one behind the other in fast memory."""
        held: list[PartRef] = []
        for part in self.by_linear[index]:
            if held and self._parts_from(held[-1], part):
                yield held
                held = []
            held.append(part)
        if held:
            yield held

    def _parts_from(self, before: PartRef, part: PartRef) -> bool:
        """Whether `part` does not lie in one stretch of memory with the one `before` it."""
        stay = [one.number in self.residents for one in (before, part)]
        if all(stay):
            one, other = self.residents[before.number], self.residents[part.number]
            same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
            return not same or other.data_ptr() < one.data_ptr() + one.nbytes
        return any(stay) or self.berths[part.number].first

    def _kept(self, index: int, product: ExactProduct) -> RowsTimes | None:
        """What multiplies by Linear `index` where all its parts stay in fast memory, made once; None where some stream."""
        if index not in self._products:
            linear, parts = self.linears[index], self.by_linear[index]
            stay = not linear.one_by_one and all(part.number in self.residents for part in parts)
            operands = (
                [linear.operand(self.residents[p.number], p.first_block, p.blocks) for p in parts] if stay else []
            )
            self._products[index] = product(operands) if stay else None
        return self._products[index]

    def _multiplying(self, linear: ExactLinear, product: ExactProduct, held: Sequence[tuple[PartRef, Tensor]]) -> RowsTimes:
        """What multiplies by the parts of `linear` that are `held`; made once for those that come together, where nothing but the
        place of their bytes changes."""
        operands = [linear.operand(data, part.first_block, part.blocks) for part, data in held]
        key = held[0][0].number, len(held)
        known = self._together.get(key)
        if known is not None and all(a is b for (a, _), (b, _) in zip(known[0], operands, strict=True)):
            return known[1]
        made = product(operands)
        self._together[key] = operands, made
        return made

    def arriving(self, index: int, together: bool) -> Iterator[list[tuple[PartRef, Tensor]]]:
        """The parts of Linear `index` in order, each with its bytes: one haul after another; `together`: as many at once as are
        here already."""
        held: list[tuple[PartRef, Tensor]] = []
        slots: list[Slot] = []
        try:
            self._announce(index)
            for part in self.by_linear[index]:
                if held and self._begins(part) and not (together and self._at_hand(part, slots)):
                    yield held
                    self._release(slots)
                    held = []
                if part.number in self.residents:
                    held.append((part, self.residents[part.number]))
                    continue
                if self._begins(part):
                    slots.append(self.next_of(part))
                self.bytes_used += part.nbytes
                start = self.berths[part.number].start + part.lead
                held.append((part, slots[-1].data[start : start + part.nbytes]))
            if held:
                yield held
        finally:
            self._release(slots)

    def _begins(self, part: PartRef) -> bool:
        """Whether `part` is resident, or the first of its haul."""
        return part.number in self.residents or self.berths[part.number].first

    def _at_hand(self, part: PartRef, slots: Sequence[Slot]) -> bool:
        """Whether `part` can be used now, beside `slots`, without the ring running short of room."""
        if part.number in self.residents or self.ring is None:
            return True
        fits = sum(slot.size for slot in slots) + part.nbytes <= self.ring.capacity // 4
        return fits and self.ring.at_hand == self.berths[part.number].haul

    def _announce(self, index: int) -> None:
        """Tell a route that does not know the order which parts Linear `index` is about to use."""
        if self.ring is not None and not self.ring.route.fixed:
            streamed = [part for part in self.by_linear[index] if part.number not in self.residents]
            self.ring.hint([self.berths[part.number].haul for part in streamed if self._begins(part)])

    def next_of(self, part: PartRef) -> Slot:
        """The haul of `part`, once the ring has brought it. What a route brought on a wrong guess before it is released unread."""
        assert self.ring is not None, f"part {part.number} is neither resident nor streamed"
        wanted = self.berths[part.number].haul
        slot = self.ring.next()
        while slot.index != wanted:
            brought = f"the ring brought haul {slot.index}, Linear {part.linear} needs {wanted}"
            assert not self.ring.route.fixed, brought
            slot.release()
            slot = self.ring.next()
        return slot

    def _release(self, slots: list[Slot]) -> None:
        for slot in slots:
            slot.release()
        slots.clear()

    def skip_head(self) -> None:
        """Leave the last Linear out of this pass, where no logits are asked for.

        A fixed route brings its parts all the same; they are released unread."""
        if self.ring is None or not self.ring.route.fixed:
            return
        for part in self.by_linear[-1]:
            if part.number in self.residents:
                continue
            self.bytes_used += part.nbytes
            if self._begins(part):
                self.next_of(part).release()

    def drop(self) -> None:
        """Let go of all weights: nothing is multiplied any more."""
        self.residents, self.linears = {}, ()
        self.experts = ExpertSupply(self)
        self._products.clear()
        self._together.clear()
        self._steps.clear()

    def abandon(self) -> None:
        """Begin the next pass with the first part again, after one was left half way."""
        if self.ring is not None:
            self.ring.rewind()
