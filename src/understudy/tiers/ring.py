"""The stream: a fixed stretch of memory through which the parts of a model pass, in order, round and round.

Each part has two marks. *Ready*: its fetch is done, it may be read. *Released*: its reader is finished, its bytes may
be overwritten. Room is given out in the order of the parts and comes back in that order, so a fetch can never overtake
a reader. The ring runs ahead by itself: whoever releases a part starts the next fetch, and the first parts of the next
pass come in while the last of this one are used."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import TransferError, UnderstudyError
from . import Fetch, Tier
from .memory import aligned, arena


@dataclass(frozen=True)
class RingStats:
    """Since the ring was made. `wait_seconds`: `next` had to wait; `busy_seconds`: at least one read was under way."""

    bytes_read: int
    reads: int
    wait_seconds: float
    busy_seconds: float

    @property
    def link_bytes_per_second(self) -> float:
        return self.bytes_read / self.busy_seconds if self.busy_seconds else 0.0


class Slot:
    """One part in the ring. `data` is its bytes, the caller's until `release`."""

    def __init__(self, ring: "Ring", index: int, data: Tensor, start: int, size: int) -> None:
        self.index = index
        self.data = data
        self.start = start
        self.size = size
        self.fetch: Fetch | None = None
        self.released = False
        self._ring = ring

    def release(self) -> None:
        """The caller reads `data` no more. Starts the fetches there now is room for. Twice is once."""
        self._ring.release(self)


class Ring:
    """The parts `order` of `tier`, for ever, through `capacity` bytes. `smallest` says how few will do.

    One thread calls `next`; any may release. A caller may hold several parts, but room comes back oldest first.
    `on_ready(index, bytes)` sees each part when it is first given out, and may raise if it is not what it should be.
    The ring closes its tier."""

    def __init__(
        self,
        tier: Tier,
        order: Sequence[int],
        capacity: int,
        *,
        allocate: Callable[[int], Tensor] = arena,
        on_ready: Callable[[int, Tensor], None] | None = None,
        paused: bool = False,
    ) -> None:
        self.tier = tier
        self.order = tuple(order)
        self.capacity = capacity
        self._lengths = [tier.extents[index].nbytes for index in self.order]
        assert min(self._lengths, default=0) > 0, f"a ring over parts of {sorted(self._lengths)[:1]} bytes"
        assert max(map(aligned, self._lengths)) <= capacity, f"{max(self._lengths)} bytes in a ring of {capacity}"
        self._memory = allocate(capacity)
        self._on_ready = on_ready
        self._unseen = set(self.order) if on_ready else set()
        self._lock = threading.Lock()
        self._coming: deque[Slot] = deque()  # asked for, not given out yet
        self._given: deque[Slot] = deque()  # given out, room not back yet
        self._turn = 0  # place in `order` of the next fetch
        self._paused = paused
        self._failure: UnderstudyError | None = None
        self._wait_seconds = 0.0
        tier.release()  # on a GPU the memory may have had a use before, which may not be over
        with self._lock:
            self._run_ahead()

    @staticmethod
    def smallest(lengths: Sequence[int], held: int) -> int:
        """Bytes with which `next` always has room while the caller holds the last `held` parts given out."""
        sizes = {aligned(length) for length in lengths}
        uneven = held > 0 and len(sizes) > 1  # a part that would stick out over the end leaves that room unused
        return (held + 1 + uneven) * max(sizes)

    def next(self) -> Slot:
        """The next part, once it is here. What went wrong with it is raised now, and again until a `rewind`."""
        with self._lock:
            self._run_ahead()
            if not self._coming and self._failure is None:
                self._begin_one()
            if self._failure is not None:
                raise self._failure
            assert self._coming, f"{len(self._given)} parts are held: no room for the next in {self.capacity} bytes"
            slot = self._coming[0]
        try:
            self._await(slot)
        except UnderstudyError as error:
            self._failure = error
            raise
        with self._lock:
            self._given.append(self._coming.popleft())
        return slot

    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""
        with self._lock:
            if slot.released:
                return
            slot.released = True
            self.tier.release()
            while self._given and self._given[0].released:
                self._given.popleft()
            self._run_ahead()

    def rewind(self) -> None:
        """Begin a pass anew, after one was left half way or failed. Slots given out before are void."""
        with self._lock:
            if self._given:
                self.tier.release()
            for slot in self._given:
                slot.released = True
            self.tier.cancel()
            self._given.clear()
            self._coming.clear()
            self._turn = 0
            self._failure = None
            self._run_ahead()

    def pause(self) -> None:
        """Read nothing ahead until `resume`: nobody may want it. `next` still brings what it is asked for."""
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._run_ahead()

    def close(self) -> None:
        with self._lock:
            self._failure = TransferError("The stream of weights is closed: load the model again.")
            self._given.clear()
            self._coming.clear()
        self.tier.close()

    @property
    def ready(self) -> bool:
        """`next` would not wait: a part is here, or what went wrong is known."""
        with self._lock:
            return self._failure is not None or (bool(self._coming) and _done(self._coming[0]))

    @property
    def full(self) -> bool:
        """All that fits is here: the link is idle until something is released."""
        with self._lock:
            if self._failure is not None:
                return True
            return (self._paused or self._place() is None) and all(map(_done, reversed(self._coming)))

    @property
    def stats(self) -> RingStats:
        traffic = self.tier.traffic
        waited = self._wait_seconds + traffic.waited_seconds
        return RingStats(traffic.bytes_read, traffic.reads, waited, traffic.busy_seconds)

    def _await(self, slot: Slot) -> None:
        assert slot.fetch is not None, f"part {slot.index} was interrupted while it was asked for: rewind first"
        began = time.perf_counter()
        try:
            slot.fetch.wait()
        finally:
            self._wait_seconds += time.perf_counter() - began
        if slot.index in self._unseen and self._on_ready is not None:
            self._on_ready(slot.index, slot.data)
            self._unseen.discard(slot.index)

    def _run_ahead(self) -> None:
        """Ask for as many parts as there is room for."""
        while self._failure is None and not self._paused and self._begin_one():
            pass

    def _begin_one(self) -> bool:
        """Ask for the next part if there is room; whether there was."""
        start = self._place()
        if start is None:
            return False
        index, length = self.order[self._turn], self._lengths[self._turn]
        slot = Slot(self, index, self._memory[start : start + length], start, aligned(length))
        self._coming.append(slot)
        self._turn = (self._turn + 1) % len(self.order)
        try:
            slot.fetch = self.tier.fetch(index, self._memory[start : start + slot.size])
        except TransferError as error:
            self._failure = error
        return True

    def _place(self) -> int | None:
        """Where the next part goes: after the newest, or to the front where it would stick out. None: no room."""
        size = aligned(self._lengths[self._turn])
        if not self._coming and not self._given:
            return 0
        oldest = (self._given or self._coming)[0].start
        newest = (self._coming or self._given)[-1]
        end = newest.start + newest.size
        if newest.start < oldest:  # the newest went round to the front: room up to the oldest
            return end if end + size <= oldest else None
        if end + size <= self.capacity:
            return end
        return 0 if size <= oldest else None


def _done(slot: Slot) -> bool:
    return slot.fetch is not None and slot.fetch.done()
