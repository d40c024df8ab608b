"""Lanes: further devices, each with a thread, a ring and a supply of its own.

By blocks, each multiplies by its own blocks of every Linear while the first device does so by its own: it is given the inputs of a
Linear and gives its outputs back, and what one device does alone (attention, norms, the KV cache, drafts) stays on the first. In
stages, each has all Linears of some layers (`stages`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ...codecs import codec
from ...devices import Device
from ...errors import UnderstudyError, UsageError, first_line
from ...kernels.pack import BLOCK, blocks_of
from ...plan.placement import STAGES, Plan
from ...quantizers import quantizer
from ...tiers import ReadSettings
from ...tiers.ring import Ring
from ...weights.store import Store
from ..stream.exact_linear import ExactLinear, decoding_bytes
from ..stream.load import read_all, read_cut, refuse_wrong_decoding
from ..stream.supply import Supply
from ..stream.weights import PartStream, Portion, Weights, largest, portions_of, streamable

T = TypeVar("T")
# Rows, columns and blocks of the product by which devices are compared.
COMPARED = (17, 256, 3)


class LaneLost(UnderstudyError):
    """A further device can compute nothing any more."""


class LaneWeights(PartStream):
    """The parts of a model that a lane has, with what decodes them. Raises as `Weights` does."""

    def __init__(self, store: Store, plan: Plan, settings: ReadSettings, device: Device) -> None:
        assert plan.parts is not None, "a lane has some of the parts"
        self.store = store
        self.settings = settings
        self.device = device
        self.host_bytes = plan.host_bytes
        self.entries = entries = [store.linears[spec.module] for spec in store.layout.linears]
        self.stored = [part.stored for entry in entries for part in entry.parts]
        self.parts = streamable(entries, mine=plan.parts)
        # A Linear without parts is the first device's.
        self.portions = portions_of(entries, plan.parts, whole=())
        stay = sorted(plan.residents)
        tensors = read_all(store, [self.stored[number] for number in stay], settings, device)
        self.residents = {number: tensor.view(torch.uint8) for number, tensor in zip(stay, tensors, strict=True)}
        wanted = {
            index: (entry, portion.first, portion.blocks)
            for index, (entry, portion) in enumerate(zip(entries, self.portions, strict=True))
            if portion.blocks and codec(entry.codec).needs_substitute
        }
        copies = read_cut(store, wanted, settings, device)
        buffer = device.arena(decoding_bytes(largest(entries), device))
        self.linears = [
            ExactLinear(portion.cut(entry), quantizer(entry.quantizer), copies.get(index, {}), buffer, device)
            for index, (entry, portion) in enumerate(zip(entries, self.portions, strict=True))
        ]
        refuse_wrong_decoding(store, self.linears, settings)


class Lane:
    """A further device with its blocks of each Linear, or with its stage. `drafts`: it holds the copies of a stage's Linears to
    draft with. Raises what loading them raises; `close` gives its memory back."""

    def __init__(self, device: Device, plan: Plan, store: Store, settings: ReadSettings, drafts: bool = False) -> None:
        self.device = device
        self.ring: Ring | None = None
        self.supply: Supply | None = None
        self.portions: list[Portion] = []
        # What it has of a stage; None by blocks, and once it is closed.
        self.stage: Weights | None = None
        self._drafts = drafts
        self._thread = ThreadPoolExecutor(1, f"lane {device.name}")
        self._at_work = ExitStack()
        try:
            self.run(partial(self._load, plan, store, settings)).result()
        except BaseException:
            self.close()
            raise

    def _load(self, plan: Plan, store: Store, settings: ReadSettings) -> None:
        self._at_work.enter_context(self.device.at_work())
        weights: LaneWeights | Weights
        if plan.split == STAGES:
            weights = self.stage = Weights(store, plan, settings, self.device, drafts=self._drafts)
        else:
            weights = LaneWeights(store, plan, settings, self.device)
        hauls = weights.hauls(plan.ring_bytes)
        self.ring = weights.ring(plan.ring_bytes, hauls)
        self.portions = weights.portions
        self.supply = Supply(weights.parts, weights.linears, weights.residents, hauls, self.ring)

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` in this lane's thread, after all that it was asked for before."""
        return self._thread.submit(self._guarded, work)

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except RuntimeError as error:
            if not self.device.lost(error):
                raise
            raise LaneLost(lost_line(self.device.name, error)) from None

    def multiply(self, index: int, tiles: Sequence[Tensor], rows: int) -> Future[list[Tensor]]:
        """Products of `tiles` with this lane's blocks of Linear `index`, as `Supply.multiply` gives them, on this device."""
        supply = self.supply
        assert supply is not None, f"{self.device.name} is closed"

        def work() -> list[Tensor]:
            with torch.inference_mode():
                return supply.multiply(index, [x.to(self.device.where) for x in tiles], rows)

        return self.run(work)

    def product(self, index: int, tiles: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Products of `tiles`, which are on this device, with Linear `index` of its stage. An accelerator is given its work by the
        calling thread; a NUMA node's own thread multiplies, since the threads it started run there."""
        if not self.device.own_memory:
            return self.multiply(index, tiles, rows).result()
        assert self.supply is not None, f"{self.device.name} is closed"
        return self.supply.multiply(index, tiles, rows)

    @property
    def bytes_used(self) -> int:
        """Bytes of exact weights that passes have used."""
        return self.supply.bytes_used if self.supply is not None else 0

    def abandon(self) -> None:
        """Begin the next pass with the first part again, after one was left half way."""
        if self.supply is not None:
            self.run(self.supply.abandon).result()

    def close(self) -> None:
        """Give back its thread and its memory. Further calls do nothing."""
        if self.ring is not None:
            self.ring.close()
        if self.supply is not None:
            self.supply.drop()
        if self.stage is not None:
            self.stage.drop()
        self.ring = self.supply = self.stage = None
        try:
            self.run(self._at_work.close).result()
        except RuntimeError:
            # The thread has ended already.
            return
        self._thread.shutdown()
        self.device.forget()


def lost_line(name: str, error: BaseException) -> str:
    """What is said of a device that stopped working."""
    return f"{name} stopped working in the middle of a request ({first_line(error)}): load the model again."


def out_of_memory_line(said: str) -> str:
    """What is said where a device has no memory for a request; `said`: by its library."""
    what = f"The device ran out of memory in this request ({said})"
    return f"{what}: shorten the prompt, or choose a smaller --context or --memory. Others can go on."


def open_lanes(
    devices: Sequence[Device], plan: Plan, store: Store, settings: ReadSettings, drafts: bool = False
) -> list[Lane]:
    """The lane of each of `devices`, by the plans in `plan.lanes`. If one cannot be opened, the others are closed. `drafts`: those
    of stages hold copies to draft with."""
    lanes: list[Lane] = []
    try:
        for device, own in zip(devices, plan.lanes, strict=True):
            lanes.append(Lane(device, own, store, settings, drafts))
    except BaseException:
        for lane in lanes:
            lane.close()
        raise
    return lanes


def refuse_other_bits(first: Device, lanes: Sequence[Lane]) -> None:
    """Raise UsageError where a lane's product has other bits than the first device's: text would depend on how parts are dealt."""
    wanted = _product(first)
    if wanted is None:
        return
    for lane in lanes:
        found = lane.run(partial(_product, lane.device)).result()
        if found is None or not torch.equal(wanted, found):
            raise UsageError(
                f"{lane.device.name} multiplies with other bits than {first.name}: --devices takes devices of one kind and model."
            )


def _product(device: Device) -> Tensor | None:
    """A product of bfloat16 numbers that make rounding show, by what multiplies rows on `device`; None: tiles multiply there, which
    are the same for all devices of this process."""
    multiply = device.row_product()
    if multiply is None:
        return None
    rows, columns, blocks = COMPARED
    x = torch.sin(torch.arange(rows * columns) * 0.7).view(rows, columns)
    weights = torch.cos(torch.arange(blocks * columns * BLOCK) * 0.3).view(blocks, columns, BLOCK)
    out = torch.empty(rows, blocks, BLOCK, dtype=torch.bfloat16, device=device.where)
    with device.at_work():
        multiply(x.to(device.where, torch.bfloat16), weights.to(device.where, torch.bfloat16), out)
        return out.cpu()


class JoinedSupply:
    """The supplies of several devices as one: all multiply by their own blocks at the same time, and the first gets all outputs."""

    def __init__(self, first: Supply, portions: Sequence[Portion], lanes: Sequence[Lane], outputs: Sequence[int]) -> None:
        self.first = first
        self.portions = portions
        self.lanes = lanes
        # Of each Linear, in the order of a pass.
        self.outputs = outputs

    @property
    def bytes_used(self) -> int:
        """Bytes of exact weights that passes have used."""
        return self.first.bytes_used + sum(lane.bytes_used for lane in self.lanes)

    def fused(self, dtype: torch.dtype) -> bool:
        """Whether every Linear multiplies just the rows there are."""
        return self.first.fused(dtype)

    def multiply(self, index: int, tiles: Sequence[Tensor], rows: int) -> list[Tensor]:
        """As `Supply.multiply`, by all blocks of all devices."""
        outputs = self.outputs[index]
        own = self.portions[index]
        if own.blocks == blocks_of(outputs):
            return self.first.multiply(index, tiles, rows)
        busy = [lane for lane in self.lanes if lane.portions[index].blocks]
        asked = [lane.multiply(index, tiles, rows) for lane in busy]
        try:
            mine = [(own, self.first.multiply(index, tiles, rows))] if own.blocks else []
        finally:
            # Nobody works on for a pass that was left.
            wait(asked)
        made = mine + [(lane.portions[index], done.result()) for lane, done in zip(busy, asked, strict=True)]
        heights = [tile.shape[0] for tile in tiles]
        joined = torch.split(tiles[0].new_empty(sum(heights), outputs), heights)
        for portion, products in made:
            start = portion.first * BLOCK
            for place, product in zip(joined, products, strict=True):
                place[:, start : start + product.shape[1]].copy_(product)
        return list(joined)

    def skip_head(self) -> None:
        """Leave the last Linear out of this pass on all devices."""
        self._each(Supply.skip_head)

    def abandon(self) -> None:
        """Begin the next pass with the first part again on all devices, after one was left half way."""
        self._each(Supply.abandon)

    def _each(self, do: Callable[[Supply], None]) -> None:
        supplies = [(lane, lane.supply) for lane in self.lanes if lane.supply is not None]
        asked = [lane.run(partial(do, supply)) for lane, supply in supplies]
        do(self.first)
        for done in asked:
            done.result()
