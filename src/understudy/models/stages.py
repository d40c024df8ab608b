"""Stages: each device has some of the decoder layers, one after another, and hidden states go from one device to the next.

A pass is the stock model's own forward; hooks in front of the first layer of each stage, and behind the last layer of all, take
it to the next device. The first device also has what lies before the layers and the head behind them. A large pass is cut into
pieces, each in a thread of its own, that follow one another through the stages: at any stage the pieces come in their order, so a
node finds there what the nodes before it have written, and no bit depends on how a pass was cut."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import Device
from ..kernels import team
from .lanes import Lane, LaneLost, lost_line
from .supply import Supply

# A pass of no nodes takes as long as so many nodes of one, in tiles and in one forward, as far as cutting it goes.
BESIDE_NODES, BESIDE_ROWS = 32, 256


class PassLeft(Exception):
    """Another piece of this pass failed."""


class PieceTurns:
    """Whose turn it is at each stop of a pass that is cut into pieces: they come in their order, one at a time on each device."""

    def __init__(self, stops: int) -> None:
        self.due = [0] * stops
        self.busy: set[int] = set()
        self.left = False
        self._changed = threading.Condition()

    def take(self, stop: int, piece: int, device: int) -> None:
        """Wait until `piece` may come to `stop`, which is on `device`. Raises PassLeft where the pass was left meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self.left or (self.due[stop] == piece and device not in self.busy))
            if self.left:
                raise PassLeft
            self.busy.add(device)

    def give(self, stop: int, device: int) -> None:
        """Let the next piece come to `stop`."""
        with self._changed:
            self.due[stop] += 1
            self.busy.discard(device)
            self._changed.notify_all()

    def leave(self) -> None:
        """End all that wait, now and later: a piece has failed."""
        with self._changed:
            self.left = True
            self._changed.notify_all()


class Walk:
    """One forward on its way from stop to stop: the stages in their order, then the first device again."""

    def __init__(self, devices: Sequence[Device], turns: PieceTurns | None, piece: int) -> None:
        self.devices = devices
        self.turns = turns
        self.piece = piece
        self.stop = -1
        self._work = ExitStack()

    @property
    def place(self) -> int:
        """The number of the device it is on."""
        return self.stop % len(self.devices)

    def enter(self, stop: int) -> None:
        """Go on to `stop`, once it is this piece's turn there. The first of its tiles that comes takes all along: what the others
        still have to do where they were is each one's own."""
        if stop <= self.stop:
            return
        self.leave()
        device = stop % len(self.devices)
        if self.turns is not None:
            self.turns.take(stop, self.piece, device)
        self.stop = stop
        self._work.enter_context(self.devices[device].at_work())

    def leave(self) -> None:
        """Let the next piece come to where this one is."""
        self._work.close()
        if self.stop >= 0 and self.turns is not None:
            self.turns.give(self.stop, self.place)
        self.stop = -1

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Begin at the first stop, and leave the last one. LaneLost where a further device is lost."""
        try:
            self.enter(0)
            yield
        except RuntimeError as error:
            device = self.devices[self.place]
            if self.stop < 1 or self.place == 0 or not device.lost(error):
                raise
            raise LaneLost(lost_line(device.name, error)) from None
        finally:
            self.leave()


class _Here(threading.local):
    """The walk of the calling thread."""

    walk: Walk | None = None


class Stages:
    """Which device runs which decoder layers. `layers`: first layer and one past the last of each device, the first in front."""

    def __init__(self, devices: Sequence[Device], layers: Sequence[tuple[int, int]]) -> None:
        self.devices = devices
        self.layers = layers
        self.fit(whole=False, step=1, streams=True)
        # Pieces of all passes so far that were cut.
        self.pieces_run = 0
        self._numbers = [number for number, (first, last) in enumerate(layers) for _ in range(first, last)]
        self._here = _Here()
        self._pool = ThreadPoolExecutor(2 * len(devices), "stages")

    def device(self, layer: int) -> Device:
        """The device that runs decoder layer `layer`."""
        return self.devices[self._numbers[layer]]

    def fit(self, whole: bool, step: int, streams: bool) -> None:
        """Say what passes are like. `whole`: a piece is one forward, not one for each tile; `step`: pieces have a multiple of so
        many nodes; `streams`: weights arrive anew for each piece, so that a pass is not cut."""
        self.beside = BESIDE_ROWS if whole else BESIDE_NODES
        self.step = step
        self.streams = streams

    def install(self, blocks: nn.ModuleList) -> None:
        """Let forwards of a model with these decoder `blocks` go from device to device, and norms lie where they are used."""
        for number, (first, last) in enumerate(self.layers):
            where = self.devices[number].where
            for layer in range(first, last) if number else ():
                blocks[layer].to(where)
                stop = number if layer == first else None
                blocks[layer].register_forward_pre_hook(_Carry(self, where, stop).before, with_kwargs=True)
        blocks[-1].register_forward_hook(_Carry(self, self.devices[0].where, len(self.devices)).after)

    def enter(self, stop: int) -> None:
        """Take the calling thread's forward to `stop`; nothing happens where it has none."""
        if self._here.walk is not None:
            self._here.walk.enter(stop)

    @contextmanager
    def walk(self, turns: PieceTurns | None = None, piece: int = 0) -> Iterator[None]:
        """Around one forward of the calling thread."""
        walk = Walk(self.devices, turns, piece)
        self._here.walk = walk
        try:
            with walk.under_way():
                yield
        finally:
            self._here.walk = None

    def pieces(self, nodes: int) -> list[tuple[int, int]]:
        """First and one past the last node of each piece of a pass: `count` pieces take (stages + count - 1) * (beside + nodes /
        count) of the time of a node at a stage, which is least near the count that is taken."""
        count = 1
        if not self.streams:
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
        turns = PieceTurns(len(self.devices) + 1)
        kernels, stock = team.threads(), torch.get_num_threads()

        def piece(number: int, work: Callable[[], Tensor]) -> Tensor:
            try:
                with torch.inference_mode(), team.shared_by(kernels, stock), self.walk(turns, number):
                    return work()
            except BaseException:
                turns.leave()
                raise

        asked = [self._pool.submit(piece, number, work) for number, work in enumerate(run)]
        failures = [error for done in asked if (error := done.exception()) is not None]
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
        return _carried(args, self.where), _carried(kwargs, self.where)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        assert self.stop is not None
        self.stages.enter(self.stop)
        return _carried(output, self.where)


def _carried(value: Any, where: str) -> Any:
    """`value` with all tensors in it in memory `where`."""
    if isinstance(value, Tensor):
        return value.to(where)
    if isinstance(value, tuple | list):
        return type(value)(_carried(one, where) for one in value)
    if isinstance(value, dict):
        return {name: _carried(one, where) for name, one in value.items()}
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
