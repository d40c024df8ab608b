"""Forwards on their way through stages: which of them is on which device. One at a time is at work on each, so what a device keeps
for its work (buffers, tables at hand) needs no other guard.

A device with memory of its own works after it was asked, in the order it was asked in. Where several forwards are under way, one
that asked ahead would keep the others waiting for devices that it has not come to: so it goes on only once its work is done where
it is, and what it takes along does not queue behind what others have asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ...devices import Device
from .lanes import LaneLost, lost_line


def always() -> bool:
    return True


def never() -> bool:
    return False


class PassLeft(Exception):
    """Another piece of this pass failed."""


class Occupancy:
    """Which devices are at work, for all forwards of a model."""

    def __init__(self) -> None:
        self.busy: set[int] = set()
        # The most devices that were at work at the same time so far.
        self.most_busy = 0
        # Told of all that `take` may wait for.
        self.changed = threading.Condition()

    def take(self, device: int, due: Callable[[], bool] = always, left: Callable[[], bool] = never) -> bool:
        """Wait until `device` has nothing to do and `due()` holds: the caller then has it. False where `left()` holds before, and
        the caller has nothing. Both are asked with `changed` held."""
        with self.changed:
            self.changed.wait_for(lambda: left() or (device not in self.busy and due()))
            if left():
                return False
            self.busy.add(device)
            self.most_busy = max(self.most_busy, len(self.busy))
            return True

    def give(self, device: int) -> None:
        """Let the next forward come to `device`."""
        with self.changed:
            self.busy.discard(device)
            self.changed.notify_all()


class PieceTurns:
    """Whose turn it is at each stop of a pass that is cut into pieces: they come in their order."""

    def __init__(self, stops: int, occupancy: Occupancy) -> None:
        self.due = [0] * stops
        self.left = False
        self._occupancy = occupancy

    def take(self, stop: int, piece: int, device: int) -> None:
        """Wait until `piece` may come to `stop`, which is on `device`. Raises PassLeft where the pass was left meanwhile."""
        if not self._occupancy.take(device, lambda: self.due[stop] == piece, lambda: self.left):
            raise PassLeft

    def give(self, stop: int, device: int) -> None:
        """Let the next piece come to `stop`."""
        with self._occupancy.changed:
            self.due[stop] += 1
            self._occupancy.give(device)

    def leave(self) -> None:
        """End all that wait, now and later: a piece has failed."""
        with self._occupancy.changed:
            self.left = True
            self._occupancy.changed.notify_all()


class Walk:
    """One forward on its way from stop to stop: the stages in their order, then the first device again. `turns`: whose turn it is
    among the pieces of a pass; None: it is a whole one. `beside`: are others under way at the same time, and each is one forward,
    not several tiles, so that all it was asked at a stop is done when it goes on?"""

    def __init__(
        self, devices: Sequence[Device], occupancy: Occupancy, turns: PieceTurns | None = None, piece: int = 0, beside: bool = False
    ) -> None:
        self.devices = devices
        self.occupancy = occupancy
        self.turns = turns
        self.piece = piece
        self.beside = beside
        self.stop = -1
        self._work = ExitStack()
        # What was brought to this stop, with what it was elsewhere, by the number of that object.
        self._brought: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def place(self) -> int:
        """The number of the device it is on."""
        return self.stop % len(self.devices)

    def enter(self, stop: int) -> None:
        """Go on to `stop`, once it is this forward's turn there. The first of its tiles that comes takes all along: what the others
        still have to do where they were is each one's own."""
        if stop <= self.stop:
            return
        self.leave()
        self._brought.clear()
        device = stop % len(self.devices)
        if self.turns is not None:
            self.turns.take(stop, self.piece, device)
        else:
            self.occupancy.take(device)
        self.stop = stop
        self._work.enter_context(self.devices[device].at_work())

    def leave(self) -> None:
        """Let the next forward come to where this one is, once it is done there. Raises what a device that is lost raises."""
        if self.stop >= 0 and self.beside:
            self.devices[self.place].finish()
        self.abandon()

    def abandon(self) -> None:
        """Let the next forward come to where this one is."""
        self._work.close()
        if self.stop >= 0 and self.turns is not None:
            self.turns.give(self.stop, self.place)
        elif self.stop >= 0:
            self.occupancy.give(self.place)
        self.stop = -1

    def carried(self, tensors: Sequence[Tensor], where: str, fresh: bool, again: bool = False) -> list[Tensor]:
        """`tensors` in memory `where`, that of the device it is on. `fresh`: it has just come there; `again`: each layer there is
        given them, so that they are brought once."""
        there = torch.device(where)
        found = {id(one): self._brought[id(one)][1] for one in tensors if id(one) in self._brought}
        new = {id(one): one for one in tensors if id(one) not in found and (fresh or one.device != there)}
        made: dict[int, Tensor] = {}
        for device in self.devices if self.beside else ():
            own = [one for one in new.values() if id(one) not in made and one.device == torch.device(device.where)]
            made |= zip(map(id, own), device.sent(own, where), strict=True) if own else {}
        made |= {key: one.to(where) for key, one in new.items() if key not in made}
        if again:
            self._brought |= {key: (new[key], one) for key, one in made.items()}
        found |= made
        return [found.get(id(one), one) for one in tensors]

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Begin at the first stop, and leave the last one. LaneLost where a further device is lost."""
        try:
            self.enter(0)
            yield
            self.leave()
        except RuntimeError as error:
            device = self.devices[self.place]
            if self.stop < 1 or self.place == 0 or not device.lost(error):
                raise
            raise LaneLost(lost_line(device.name, error)) from None
        finally:
            self.abandon()
