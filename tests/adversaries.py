"""Tiers that do what a real one may do at its worst, on purpose: proofs instead of timing luck.

Each takes extents of real files, so any Store can be streamed through them. `ADVERSARIES` are all right in the end;
`Failing` and `Short` are not."""

import random
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from understudy.errors import TransferError
from understudy.tiers import Extent, Tier, Traffic

GARBAGE = 0xAA


class Wanted:
    """One fetch of an adversary: `arrive` writes the bytes, unless it was cancelled."""

    def __init__(self, tier: "Adversary", index: int, into: Tensor) -> None:
        self.tier, self.index, self.into = tier, index, into
        self.arrived = threading.Event()
        self.error: TransferError | None = None

    def arrive(self) -> None:
        if not self.arrived.is_set():
            self.tier.deliver(self)
            self.arrived.set()

    def refuse(self, reason: str) -> None:
        self.error = TransferError(reason)
        self.arrived.set()

    def done(self) -> bool:
        return self.arrived.is_set()

    def wait(self) -> None:
        if not self.arrived.is_set():
            self.tier.hurry(self)
        assert self.arrived.is_set()
        if self.error is not None:
            raise TransferError(str(self.error))


class Adversary:
    """Eager: copies the moment it is asked, so room given out too early is overwritten under its reader at once."""

    note = ""
    checks = False

    def __init__(self, extents: Sequence[Extent]) -> None:
        self.extents = tuple(extents)
        self.asked: list[int] = []
        self.released = 0
        self.closed = False
        self.pending: list[Wanted] = []
        self.read = 0

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.read, len(self.asked), 0.0)

    def fetch(self, index: int, into: Tensor) -> Wanted:
        assert not self.closed and into.numel() % 4096 == 0 and into.data_ptr() % 4096 == 0
        self.asked.append(index)
        wanted = Wanted(self, index, into)
        self.begin(wanted)
        return wanted

    def begin(self, wanted: Wanted) -> None:
        wanted.arrive()

    def hurry(self, wanted: Wanted) -> None:
        raise AssertionError("what is asked for arrives at once")

    def deliver(self, wanted: Wanted) -> None:
        extent = self.extents[wanted.index]
        with extent.path.open("rb") as file:
            file.seek(extent.offset)
            data = bytearray(file.read(extent.nbytes))
        assert len(data) == extent.nbytes, f"{extent} gave {len(data)} bytes"
        wanted.into[: extent.nbytes] = torch.frombuffer(data, dtype=torch.uint8)
        self.read += extent.nbytes

    def release(self) -> None:
        self.released += 1

    def cancel(self) -> None:
        for wanted in self.pending:
            wanted.refuse("cancelled")
        self.pending.clear()

    def close(self) -> None:
        self.cancel()
        self.closed = True


Eager = Adversary


class Lazy(Adversary):
    """Leaves garbage until waited for: whoever reads before `wait` reads nonsense."""

    def begin(self, wanted: Wanted) -> None:
        wanted.into.fill_(GARBAGE)
        self.pending.append(wanted)

    def hurry(self, wanted: Wanted) -> None:
        self.pending.remove(wanted)
        wanted.arrive()


class Reordering(Lazy):
    """Completes whatever it likes first: others, then what is waited for."""

    def __init__(self, extents: Sequence[Extent], seed: int = 0) -> None:
        super().__init__(extents)
        self.random = random.Random(seed)

    def hurry(self, wanted: Wanted) -> None:
        others = [other for other in self.pending if other is not wanted]
        for early in self.random.sample(others, self.random.randint(0, len(others))):
            super().hurry(early)
        super().hurry(wanted)


class Slow(Adversary):
    """A thread that takes its time for each part, so the reader is always ahead of the link."""

    def __init__(self, extents: Sequence[Extent], seconds: float = 0.001) -> None:
        super().__init__(extents)
        self.seconds = seconds
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.serve, name="adversary", daemon=True)
        self.thread.start()

    def begin(self, wanted: Wanted) -> None:
        with self.changed:
            self.pending.append(wanted)
            self.changed.notify()

    def serve(self) -> None:
        while True:
            with self.changed:
                while not self.pending and not self.closed:
                    self.changed.wait()
                if self.closed:
                    return
                wanted = self.pending[0]
            time.sleep(self.seconds)
            with self.changed:  # a cancel waits for this, as a disk's does for a read under way
                if self.pending and self.pending[0] is wanted:
                    wanted.arrive()
                    self.pending.pop(0)

    def hurry(self, wanted: Wanted) -> None:
        assert wanted.arrived.wait(10), "the adversary's thread is gone"

    def cancel(self) -> None:
        with self.changed:
            super().cancel()

    def close(self) -> None:
        with self.changed:
            super().close()
            self.changed.notify()
        self.thread.join()


class Failing(Adversary):
    """The n-th fetch (from 0) never arrives. `at_once`: `fetch` itself raises."""

    def __init__(self, extents: Sequence[Extent], nth: int = 0, at_once: bool = False) -> None:
        super().__init__(extents)
        self.nth, self.at_once = nth, at_once

    def begin(self, wanted: Wanted) -> None:
        if len(self.asked) - 1 != self.nth:
            super().begin(wanted)
        elif self.at_once:
            raise TransferError(f"fetch {self.nth} was refused")
        else:
            wanted.refuse(f"fetch {self.nth} failed")


class Short(Lazy):
    """Brings the first half of every part, then fails as a truncated file does."""

    def deliver(self, wanted: Wanted) -> None:
        half = self.extents[wanted.index].nbytes // 2
        wanted.into[:half] = 0
        wanted.refuse(f"wanted {2 * half} bytes, got {half}")


ADVERSARIES: dict[str, Callable[[Sequence[Extent]], Tier]] = {
    "eager": Eager,
    "lazy": Lazy,
    "reordering": Reordering,
    "slow": Slow,
}
