"""The stream: a fixed stretch of memory through which the parts of a model pass, in the order of a route.

Each part has two marks. *Ready*: its fetch is done, it may be read. *Released*: its reader is finished, its bytes may
be overwritten. Room is given out in the order of the fetches and comes back in that order, so a fetch can never
overtake a reader. The ring runs ahead by itself: whoever releases a part starts the next fetch, or, while plenty is ahead
of the reader, the fetches of several small parts at once, which a tier may make one read. With a fixed route, the first
parts of the next pass come in while the last of this one are used."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import TransferError, UnderstudyError
from . import AUTO, Fetch, Streaming, Tier, open_tier
from .memory import aligned, arena
from .route import Route
from .streams import Streams

# Room that comes back in small pieces is used again once it is this much, or this share of the ring if that is less,
BATCH, SHARE = 4 << 20, 4
# as long as this share of the ring is ahead of the reader: here already, or asked for.
PLENTY = 2


@dataclass(frozen=True)
class RingStats:
    """What a ring has brought since it was made, and how long that took."""

    bytes_read: int
    # reads that the tier made
    reads: int
    # in which `next` waited for a part
    wait_seconds: float
    # in which at least one read was under way
    busy_seconds: float

    @property
    def link_bytes_per_second(self) -> float:
        """Speed of the link while it was busy; 0 before the first read."""
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
        """The caller reads `data` no more: fetches that now have room begin. A second call does nothing."""
        self._ring.release(self)


class Ring:
    """Brings the parts that `route` names from `tier` through `capacity` bytes of memory; see `smallest_ring`.

    One thread calls `next`; any may release. A caller may hold several parts, but room comes back oldest first.
    `on_ready(index, bytes)` sees each part when it is first given out, and raises if it is not what it should be.
    The ring closes its tier."""

    def __init__(
        self,
        tier: Tier,
        route: Route,
        capacity: int,
        *,
        allocate: Callable[[int], Tensor] = arena,
        on_ready: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.tier = tier
        self.route = route
        self.capacity = capacity
        lengths = [tier.extents[index].nbytes for index in route.parts]
        assert min(lengths, default=0) > 0, f"a ring over parts of {sorted(lengths)[:1]} bytes"
        assert max(map(aligned, lengths)) <= capacity, f"{max(lengths)} bytes in a ring of {capacity}"
        self._memory = allocate(capacity)
        self._on_ready = on_ready
        self._unseen = set(route.parts) if on_ready else set()
        self._lock = threading.Lock()
        # asked for, not given out yet
        self._coming: deque[Slot] = deque()
        # bytes of those
        self._ahead = 0
        # given out, room not back yet
        self._given: deque[Slot] = deque()
        # bytes of room that came back since fetches were last begun
        self._back = 0
        # named by the route, but there was no room yet
        self._waiting: int | None = None
        self._failure: UnderstudyError | None = None
        self._wait_seconds = 0.0
        # on a GPU the memory may have had a use before, which may not be over
        tier.release()
        with self._lock:
            self._run_ahead()

    def next(self) -> Slot:
        """The next part, once it is here. What went wrong with it is raised now, and again until a `rewind`."""
        with self._lock:
            self._refill()
            if self._failure is not None:
                raise self._failure
            assert self._coming or self._upcoming() is not None, "the route names no part: hint what will be used"
            assert self._coming, f"{len(self._given)} parts are held: no room for the next in {self.capacity} bytes"
            slot = self._coming[0]
        try:
            self._await(slot)
        except UnderstudyError as error:
            self._failure = error
            raise
        with self._lock:
            self._given.append(self._coming.popleft())
            self._ahead -= slot.size
        return slot

    def hint(self, parts: Sequence[int]) -> None:
        """Tell the route that these parts are about to be used. Those on their way in this order are left out."""
        with self._lock:
            left = deque(parts)
            for index in [*(slot.index for slot in self._coming), self._waiting]:
                if left and left[0] == index:
                    left.popleft()
            self.route.hint(left)
            self._run_ahead()

    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""
        with self._lock:
            if slot.released:
                return
            slot.released = True
            self.tier.release()
            while self._given and self._given[0].released:
                self._back += self._given.popleft().size
            self._refill()

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
            self._ahead = 0
            self.route.rewind()
            self._waiting = None
            self._failure = None
            self._run_ahead()

    def close(self) -> None:
        with self._lock:
            self._failure = TransferError("The stream of weights is closed: load the model again.")
            self._given.clear()
            self._coming.clear()
        self.tier.close()

    @property
    def at_hand(self) -> int | None:
        """The part that `next` would give without waiting; None where it would wait or raise."""
        with self._lock:
            here = self._failure is None and self._coming and _done(self._coming[0])
            return self._coming[0].index if here else None

    @property
    def full(self) -> bool:
        """Whether all that fits, or that the route has named, is here: the link is idle until a release or a hint."""
        with self._lock:
            if self._failure is not None:
                return True
            self._run_ahead()
            return self._place() is None and all(map(_done, reversed(self._coming)))

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

    def _refill(self) -> None:
        """Run ahead, unless so much is ahead of the reader that more room may come back first."""
        if self._back >= min(BATCH, self.capacity // SHARE) or self._ahead < self.capacity // PLENTY:
            self._run_ahead()

    def _run_ahead(self) -> None:
        """Ask for as many parts as there is room for."""
        self._back = 0
        while self._failure is None and self._begin_one():
            pass

    def _begin_one(self) -> bool:
        """Ask for the next part if the route names one and there is room; returns whether it was asked for."""
        index, start = self._upcoming(), self._place()
        if index is None or start is None:
            return False
        length = self.tier.extents[index].nbytes
        slot = Slot(self, index, self._memory[start : start + length], start, aligned(length))
        self._coming.append(slot)
        self._ahead += slot.size
        self._waiting = None
        try:
            slot.fetch = self.tier.fetch(index, self._memory[start : start + slot.size])
        except TransferError as error:
            self._failure = error
        return True

    def _upcoming(self) -> int | None:
        """The part to fetch next, which stays the same until it is asked for; None while the route names none."""
        if self._waiting is None:
            self._waiting = self.route.next()
        return self._waiting

    def _place(self) -> int | None:
        """Where the next part goes: after the newest, or to the front if it would stick out. None: no part or no room."""
        index = self._upcoming()
        if index is None:
            return None
        size = aligned(self.tier.extents[index].nbytes)
        if not self._coming and not self._given:
            return 0
        oldest = (self._given or self._coming)[0].start
        newest = (self._coming or self._given)[-1]
        end = newest.start + newest.size
        # the newest went round to the front: room up to the oldest
        if newest.start < oldest:
            return end if end + size <= oldest else None
        if end + size <= self.capacity:
            return end
        return 0 if size <= oldest else None


def open_ring(
    tier: str,
    streaming: Streaming,
    capacity: int,
    *,
    allocate: Callable[[int], Tensor] = arena,
    streams: Streams | None = None,
) -> Ring:
    """A ring over the tier that `streaming` names; where it names none, over the one called `tier`. Each part is checked once.

    See `open_tier` for `streams` and what is raised."""
    named = streaming.read.tier
    opened = open_tier(tier if named == AUTO else named, streaming, streams)
    check = None if opened.checks else streaming.check
    return Ring(opened, streaming.route, capacity, allocate=allocate, on_ready=check)


def smallest_ring(lengths: Sequence[int], held: int) -> int:
    """Bytes with which `Ring.next` has room for the next of parts of `lengths` bytes, while the last `held` are in use."""
    sizes = {aligned(length) for length in lengths}
    # a part that would stick out over the end leaves the room there unused
    uneven = held > 0 and len(sizes) > 1
    return (held + 1 + uneven) * max(sizes)


def _done(slot: Slot) -> bool:
    return slot.fetch is not None and slot.fetch.done()
