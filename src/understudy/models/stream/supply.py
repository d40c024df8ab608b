"""Where each part of the exact weights comes from: it is kept in fast memory for good, or the ring brings it.

Both ways end in the same product of the same blocks in the same order, so the plan never changes a bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...devices import ExactProduct
from ...kernels.exact_operand import Operand
from ...kernels.pack import BLOCK, blocks_of
from ...tiers.ring import Ring, Slot
from ..mixtures.expert_supply import ExpertParts, ExpertSupply
from ..mixtures.routed import Routed
from .exact_linear import ExactLinear
from .hauls import Haul, berths_of
from .part_runs import Lying, PartRun, lying_in, rows_times, runs_of

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
        self.berths = berths_of(hauls)
        self.ring = ring
        self.bytes_used = 0
        # hauls in use, and whether the last of them has parts of Linears that come later
        self._slots, self._goes_on = list[Slot](), False
        self.experts = ExpertParts(linears, self.by_linear)
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
            return ExpertSupply(self).multiply(index, tiles)
        linear, given = self.linears[index], tiles[0]
        heights = [tile.shape[0] for tile in tiles]
        height, outputs = sum(heights), linear.entry.shape[0]
        blocks = blocks_of(outputs)
        product = linear.product(given.dtype)
        every = given.new_empty((height, blocks, BLOCK))
        if product is None:
            self._in_tiles(index, tiles, every.view(len(tiles), heights[0], blocks, BLOCK))
        else:
            taken = every
            if rows < height:
                # Padding, which is not multiplied like all other rows.
                every[rows:].zero_()
                taken = every[:rows]
            kept = self._kept(index, product)
            if kept is not None:
                kept(tiles, taken)
            else:
                for held in self._arriving(index, together=not linear.one_by_one):
                    self._multiplying(linear, product, held)(tiles, taken)
        made = every.view(height, -1)
        made = made if outputs == blocks * BLOCK else made[:, :outputs]
        return [made] if len(heights) == 1 else list(torch.split(made, heights))

    def _in_tiles(self, index: int, tiles: Sequence[Tensor], out: Tensor) -> None:
        """Multiply `tiles`, padding too, by all parts of Linear `index`, into `out` [tiles, rows, all blocks, 64]."""
        linear = self.linears[index]
        by_rows = linear.device.row_product()
        if by_rows is not None:
            self.by_runs(index, partial(rows_times, by_rows, tiles, out))
            return
        for held in self._arriving(index, together=False):
            linear.multiply([(data, part.first_block, part.blocks) for part, data in held], tiles, out)

    def by_runs(self, index: int, use: Callable[[PartRun, Tensor], None]) -> None:
        """Have all runs of Linear `index` used with their weights [blocks, K, 64], haul by haul."""
        if index not in self._steps:
            self._steps[index] = self._steps_of(index)
        self._announce(index)
        for step in self._steps[index]:
            slot = None if step.brought is None else self._next(step.brought)
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

    def _arriving(self, index: int, together: bool) -> Iterator[list[tuple[PartRef, Tensor]]]:
        """The parts of Linear `index` in order; see `arriving`."""
        self._announce(index)
        yield from self.arriving(self.by_linear[index], together)

    def arriving(self, parts: Sequence[PartRef], together: bool) -> Iterator[list[tuple[PartRef, Tensor]]]:
        """`parts`, which the ring was told of, in order, each with its bytes: one haul after another; `together`: as many at once
        as are here already."""
        held: list[tuple[PartRef, Tensor]] = []
        for part in parts:
            if held and self._begins(part) and not (together and self._at_hand(part)):
                yield held
                self._release()
                held = []
            if part.number in self.residents:
                held.append((part, self.residents[part.number]))
                continue
            start = self.berths[part.number].start + part.lead
            held.append((part, self._slot(part).data[start : start + part.nbytes]))
            self.bytes_used += part.nbytes
        if held:
            yield held
            self._release()

    def _begins(self, part: PartRef) -> bool:
        """Whether `part` is resident, or the first of its haul."""
        return part.number in self.residents or self.berths[part.number].first

    def _at_hand(self, part: PartRef) -> bool:
        """Whether `part` can be used now, beside what is in use, without the ring running short of room."""
        if part.number in self.residents or self.ring is None:
            return True
        fits = sum(slot.size for slot in self._slots) + part.nbytes <= self.ring.capacity // 4
        return fits and self.ring.at_hand == self.berths[part.number].haul

    def _announce(self, index: int) -> None:
        """Tell a route that does not know the order which parts Linear `index` is about to use."""
        if self.ring is not None and not self.ring.route.fixed:
            streamed = [part for part in self.by_linear[index] if part.number not in self.residents]
            self.ring.hint([self.berths[part.number].haul for part in streamed if self._begins(part)])

    def _slot(self, part: PartRef) -> Slot:
        """The haul of `part`, which stays in use until its last part is released."""
        berth = self.berths[part.number]
        if berth.first:
            self._slots.append(self._next(part))
        self._goes_on = not berth.last
        return self._slots[-1]

    def _next(self, part: PartRef) -> Slot:
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

    def _release(self) -> None:
        """Release what is in use, but for a haul of which later Linears have parts."""
        kept = self._slots[-1:] if self._goes_on else []
        for slot in self._slots[:-1] if kept else self._slots:
            slot.release()
        self._slots = kept

    def skip_head(self) -> None:
        """Leave the last Linear out of this pass, where no logits are asked for.

        A fixed route brings its parts all the same; they are released unread."""
        if self.ring is None or not self.ring.route.fixed:
            return
        for part in self.by_linear[-1]:
            if part.number in self.residents:
                continue
            self.bytes_used += part.nbytes
            self._slot(part)
            self._release()

    def drop(self) -> None:
        """Let go of all weights: nothing is multiplied any more."""
        self.residents, self.linears = {}, ()
        self.experts = ExpertParts((), ())
        for made in (self._products, self._together, self._steps, self._slots):
            made.clear()

    def abandon(self) -> None:
        """Begin the next pass with the first part again, after one was left half way."""
        self._slots, self._goes_on = [], False
        if self.ring is not None:
            self.ring.rewind()
