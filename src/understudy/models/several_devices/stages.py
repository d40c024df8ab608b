"""Stages: each device has some of the decoder layers, one after another, and hidden states go from one device to the next.

A pass is the stock model's own forward; hooks in front of the first layer of each stage, and behind the last layer of all, take
it to the next device. The first device also has what lies before the layers and the head behind them. A large pass is cut into
pieces, each in a thread of its own, that follow one another through the stages: at any stage the pieces come in their order, so a
node finds there what the nodes before it have written, and no bit depends on how a pass was cut."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...devices import Device
from ...kernels import team
from ..stream.supply import Supply
from .lanes import Lane
from .walk import Occupancy, PassLeft, PieceTurns, Walk

T = TypeVar("T")
# A pass of no nodes takes as long as so many nodes of one, in tiles and in one forward, as far as cutting it goes.
BESIDE_NODES, BESIDE_ROWS = 32, 256


class _Way(threading.local):
    """The walk of the calling thread, and whether other groups of texts are under way beside its own."""

    walk: Walk | None = None
    grouped: bool = False


class Stages:
    """Which device runs which decoder layers. `layers`: first layer and one past the last of each device, the first in front."""

    def __init__(self, devices: Sequence[Device], layers: Sequence[tuple[int, int]]) -> None:
        self.devices = devices
        self.layers = layers
        self.fit(whole=False, step=1, streams=True)
        # Pieces of all passes so far that were cut, and groups of texts that went side by side.
        self.pieces_run = 0
        self.groups_run = 0
        self.occupancy = Occupancy()
        self._numbers = [number for number, (first, last) in enumerate(layers) for _ in range(first, last)]
        self._way = _Way()
        self._pool = ThreadPoolExecutor(2 * len(devices), "stages")

    def device(self, layer: int) -> Device:
        """The device that runs decoder layer `layer`."""
        return self.devices[self._numbers[layer]]

    def fit(self, whole: bool, step: int, streams: bool, groups: int = 1) -> None:
        """Say what passes are like. `whole`: a piece is one forward, not one for each tile; `step`: pieces have a multiple of so
        many nodes; `streams`: weights arrive anew for each piece, so that a pass is not cut; `groups`: so many of texts may be
        under way at the same time."""
        self.whole = whole
        self.beside = BESIDE_ROWS if whole else BESIDE_NODES
        self.step = step
        self.streams = streams
        self.most_groups = groups

    def install(self, blocks: nn.ModuleList) -> None:
        """Let forwards of a model with these decoder `blocks` go from device to device, and norms lie where they are used."""
        for number, (first, last) in enumerate(self.layers):
            where = self.devices[number].where
            for layer in range(first, last) if number else ():
                blocks[layer].to(where)
                stop = number if layer == first else None
                blocks[layer].register_forward_pre_hook(_Carry(self, where, stop).before, with_kwargs=True)
        blocks[-1].register_forward_hook(_Carry(self, self.devices[0].where, len(self.devices)).after)

    def carried(self, tensors: Sequence[Tensor], where: str, fresh: bool, again: bool = False) -> list[Tensor]:
        """As `Walk.carried`, for the calling thread's forward."""
        walk = self._way.walk
        return [one.to(where) for one in tensors] if walk is None else walk.carried(tensors, where, fresh, again)

    def enter(self, stop: int) -> None:
        """Take the calling thread's forward to `stop`; nothing happens where it has none."""
        if self._way.walk is not None:
            self._way.walk.enter(stop)

    @contextmanager
    def walk(self, turns: PieceTurns | None = None, piece: int = 0) -> Iterator[None]:
        """Around one forward of the calling thread."""
        beside = self.whole and (turns is not None or self._way.grouped)
        walk = Walk(self.devices, self.occupancy, turns, piece, beside)
        self._way.walk = walk
        try:
            with walk.under_way():
                yield
        finally:
            self._way.walk = None

    def pieces(self, nodes: int) -> list[tuple[int, int]]:
        """First and one past the last node of each piece of a pass: `count` pieces take (stages + count - 1) * (beside + nodes /
        count) of the time of a node at a stage, which is least near the count that is taken. Beside other groups a pass is whole:
        they have the devices meanwhile."""
        count = 1
        if not self.streams and not self._way.grouped:
            count = max(round(math.sqrt((len(self.devices) - 1) * nodes / self.beside)), 1)
        size = -(-nodes // count)
        size = -(-size // self.step) * self.step
        return [(start, min(start + size, nodes)) for start in range(0, nodes, size)]

    def flow(self, run: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """What each piece of a pass gives: one after another, each at another stage than the others. Raises what one of them
        raised."""
        if len(run) == 1:
            with self.walk():
                return [run[0]()]
        self.pieces_run += len(run)
        turns = PieceTurns(len(self.devices) + 1, self.occupancy)

        def piece(number: int, work: Callable[[], Tensor]) -> Tensor:
            try:
                with self.walk(turns, number):
                    return work()
            except BaseException:
                turns.leave()
                raise

        return self._all([partial(piece, number, work) for number, work in enumerate(run)])

    def groups(self, texts: int) -> int:
        """The most groups in which so many texts could go through the stages, each with its draft and its pass; 1 where weights
        stream, which come once for all of them."""
        return 1 if self.streams else max(min(self.most_groups, texts), 1)

    def side_by_side(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """What each of `work` gives, the draft and the pass of a group of texts: all under way at the same time, each in a thread
        of its own. Raises what one of them raised, once all are over."""
        self.groups_run += len(work)

        def group(own: Callable[[], T]) -> T:
            self._way.grouped = True
            try:
                with self.devices[0].at_work():
                    return own()
            finally:
                self._way.grouped = False

        return self._all([partial(group, own) for own in work])

    def _all(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """What each of `work` gives, each in a thread of its own with the caller's share of the processor."""
        kernels, stock = team.threads(), torch.get_num_threads()

        def alone(own: Callable[[], T]) -> T:
            with torch.inference_mode(), team.shared_by(kernels, stock):
                return own()

        asked: list[Future[T]] = []
        try:
            for own in work:
                asked.append(self._pool.submit(alone, own))
            failures = [error for done in asked if (error := done.exception()) is not None]
        except BaseException:
            # An interrupt: nothing may be under way any more when the pass is undone.
            wait(asked)
            raise
        if failures:
            raise next((error for error in failures if not isinstance(error, PassLeft)), failures[0])
        return [done.result() for done in asked]

    def close(self) -> None:
        """End its threads. Further calls do nothing."""
        self._pool.shutdown()


class _Carry:
    """Hooks of a block, as torch calls them: what it is given, or gives, goes to memory `where` at `stop`."""

    def __init__(self, stages: Stages, where: str, stop: int | None) -> None:
        self.stages = stages
        self.where = where
        # None: the forward is there already.
        self.stop = stop

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if self.stop is not None:
            self.stages.enter(self.stop)
        return self._carried(args), self._carried(kwargs, again=True)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        assert self.stop is not None
        self.stages.enter(self.stop)
        return self._carried(output)

    def _carried(self, value: Any, again: bool = False) -> Any:
        """`value` with all tensors in it where the forward is now."""
        tensors: list[Tensor] = []

        def noted(one: Tensor) -> Tensor:
            tensors.append(one)
            return one

        _with_tensors(value, noted)
        there = iter(self.stages.carried(tensors, self.where, self.stop is not None, again))
        return _with_tensors(value, lambda _: next(there))


def _with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with each tensor in it as `change` gives it, in their order."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_with_tensors(one, change) for one in value)
    if isinstance(value, dict):
        return {name: _with_tensors(one, change) for name, one in value.items()}
    return value


class StagedSupply:
    """The supplies of several devices as one, each of which has whole Linears. `owners`: the lane of each Linear, None for the
    first device's."""

    def __init__(self, first: Supply, owners: Sequence[Lane | None]) -> None:
        self.first = first
        self.owners = owners
        self.lanes = list(dict.fromkeys(lane for lane in owners if lane is not None))

    @property
    def bytes_used(self) -> int:
        """Bytes of exact weights that passes have used."""
        return self.first.bytes_used + sum(lane.bytes_used for lane in self.lanes)

    def fused(self, dtype: torch.dtype) -> bool:
        """Whether every Linear multiplies just the rows there are."""
        return self.first.fused(dtype) and all(lane.supply is not None and lane.supply.fused(dtype) for lane in self.lanes)

    def multiply(self, index: int, tiles: Sequence[Tensor], rows: int) -> list[Tensor]:
        """As `Supply.multiply`, on the device that has Linear `index`, where the tiles are."""
        lane = self.owners[index]
        return self.first.multiply(index, tiles, rows) if lane is None else lane.product(index, tiles, rows)

    def skip_head(self) -> None:
        """Leave the last Linear, which is the first device's, out of this pass."""
        self.first.skip_head()

    def abandon(self) -> None:
        """Begin the next pass with the first part again on all devices, after one was left half way."""
        for lane in self.lanes:
            lane.abandon()
        self.first.abandon()
