"""A copy never overtakes a reader, however late each stream runs: a simulated device executes the two queues in any order."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.errors import StoreError, TransferError
from understudy.tiers import Extent, pinned
from understudy.tiers.memory import aligned, arena
from understudy.tiers.pinned import PinnedTier
from understudy.tiers.ring import Ring

PAGE = 4096
LENGTH = 1 << 18
STALE = 0xFF


@dataclass
class Event:
    at: int | None = None


@dataclass
class Stream:
    """Work not done yet; each piece says whether it could be done now."""

    work: deque[Callable[[], bool]] = field(default_factory=deque)

    def then(self, action: Callable[[], None]) -> None:
        self.work.append(lambda: (action(), True)[1])


class SimulatedDevice:
    """Streams that run at their own pace: at every question, some of their work is done, in an order chance decides."""

    def __init__(self, seed: int, refuse_after: int = 1000) -> None:
        self.chance = random.Random(seed)
        self.compute, self.copies = Stream(), Stream()
        self.clock = 0
        self.copied = 0
        self.registered: list[int] = []
        self.refuse_after = refuse_after

    def register(self, memory: Tensor) -> str:
        if len(self.registered) == self.refuse_after:
            return "refused to pin"
        self.registered.append(memory.data_ptr())
        return ""

    def unregister(self, memory: Tensor) -> None:
        self.registered.remove(memory.data_ptr())

    def copy_stream(self) -> Stream:
        return self.copies

    def current_stream(self) -> Stream:
        return self.compute

    def record(self, stream: Stream) -> Event:
        event = Event()

        def happen() -> None:
            event.at = self.clock

        stream.then(happen)
        return event

    def await_event(self, stream: Stream, event: Event) -> None:
        stream.work.append(lambda: event.at is not None)

    def copy(self, stream: Stream, source: Tensor, into: Tensor) -> None:
        self.copied += len(source)
        half = len(source) // 2  # a reader may come between the two
        stream.then(lambda: into[:half].copy_(source[:half]))
        stream.then(lambda: into[half:].copy_(source[half:]))
        self.advance(self.chance.randint(0, 9))

    def happened(self, event: Event) -> bool:
        self.advance(self.chance.randint(0, 2))
        return event.at is not None

    def seconds_between(self, first: Event, last: Event) -> float:
        assert first.at is not None and last.at is not None
        return float(last.at - first.at)

    def finish(self, stream: Stream) -> None:
        while stream.work:
            self.step([self.compute, self.copies])

    def advance(self, steps: int) -> None:
        favourite = self.chance.choice([[self.compute], [self.copies], [self.compute, self.copies]])
        for _ in range(steps):
            if any(stream.work for stream in favourite):
                self.step(favourite, may_stall=True)

    def step(self, streams: Sequence[Stream], may_stall: bool = False) -> None:
        self.clock += 1
        for stream in self.chance.sample(list(streams), len(streams)):
            if stream.work and stream.work[0]():
                stream.work.popleft()
                return
        assert may_stall, "the streams wait for each other"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pinned") / "weights.bin"
    path.write_bytes(random.Random(3).randbytes(LENGTH).replace(b"\xff", b"\x01"))
    return path


def extents_of(path: Path, lengths: Sequence[int]) -> list[Extent]:
    offset, extents = 0, []
    for length in lengths:
        extents.append(Extent(path, offset, length))
        offset += aligned(length)
    return extents


def run(weights: Path, lengths: Sequence[int], parts: int, held: int, spare: int, device: SimulatedDevice) -> Ring:
    """The host gives out work for `parts` parts without ever waiting; the device checks each when it gets there."""
    extents, content = extents_of(weights, lengths), weights.read_bytes()
    tier = PinnedTier(extents, device=device)
    capacity = Ring.smallest(lengths, held) + spare
    ring = Ring(tier, range(len(lengths)), capacity, allocate=lambda nbytes: arena(nbytes).fill_(STALE))

    def read(data: Tensor, extent: Extent) -> None:
        assert bytes(data.numpy()) == content[extent.offset : extent.offset + extent.nbytes], "a reader was overtaken"

    window: list[Any] = []
    for number in range(parts):
        slot = ring.next()
        extent = extents[slot.index]
        for _ in range(device.chance.randint(1, 3)):
            device.compute.then(lambda data=slot.data, extent=extent: read(data, extent))
        device.compute.then(lambda data=slot.data: data.fill_(STALE))
        window.append(slot)
        if len(window) > held:
            window.pop(0).release()
        if number == parts // 2 and device.chance.random() < 0.5:
            ring.rewind()
            window.clear()
    device.finish(device.compute)
    return ring


cases = given(
    lengths=st.lists(st.integers(2, 3 * PAGE), min_size=1, max_size=6),
    parts=st.integers(1, 25),
    held=st.integers(0, 2),
    spare=st.integers(0, 6 * PAGE),
    seed=st.integers(0, 10_000),
)


@cases
@settings(max_examples=150, deadline=None)
def test_no_copy_overtakes_a_reader(
    weights: Path, lengths: list[int], parts: int, held: int, spare: int, seed: int
) -> None:
    device = SimulatedDevice(seed)
    run(weights, lengths, parts, held, spare, device).close()
    assert not device.registered


class Forgetful(SimulatedDevice):
    """A device on which one of the two waits is forgotten."""

    forgotten = "copies"

    def await_event(self, stream: Stream, event: Event) -> None:
        if stream is not getattr(self, self.forgotten):
            super().await_event(stream, event)


@pytest.mark.parametrize("forgotten", ["copies", "compute"])
def test_the_simulation_would_see_a_forgotten_wait(weights: Path, forgotten: str) -> None:
    def overtaken(seed: int) -> bool:
        device = Forgetful(seed)
        device.forgotten = forgotten
        try:
            run(weights, [PAGE] * 3, 12, 0, 0, device).close()
        except AssertionError:
            return True
        return False

    assert all(any(overtaken(10 * block + seed) for seed in range(10)) for block in range(3))


def test_traffic_counts_what_arrived_in_device_time(weights: Path) -> None:
    device = SimulatedDevice(5)
    ring = run(weights, [PAGE, 100], 10, 0, 0, device)
    ring.close()
    stats = ring.stats
    assert stats.bytes_read == device.copied > 5 * PAGE
    assert stats.reads >= 10 and 0 < stats.busy_seconds < device.clock


def test_a_refusal_to_pin_is_said_and_the_rest_stays_pinned(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "REGISTERED_AT_ONCE", 2 * PAGE)
    device = SimulatedDevice(1, refuse_after=1)
    ring = run(weights, [PAGE, PAGE, PAGE, 3 * PAGE, 10], 15, 1, 0, device)
    assert ring.tier.note == "refused to pin"
    assert len(device.registered) == 1
    ring.close()
    assert not device.registered


def test_a_damaged_part_is_found_when_it_is_loaded(weights: Path) -> None:
    def verify(index: int, data: Tensor) -> None:
        assert data.numel() == 100 * (index + 1)
        if index == 1:
            raise StoreError("part 1 is damaged")

    device = SimulatedDevice(0)
    with pytest.raises(StoreError, match="damaged"):
        PinnedTier(extents_of(weights, [100, 200, 300]), device=device, verify=verify)
    assert not device.registered


def test_a_missing_file_leaves_nothing_pinned(tmp_path: Path) -> None:
    device = SimulatedDevice(0)
    with pytest.raises(TransferError, match="Cannot open"):
        PinnedTier([Extent(tmp_path / "gone", 0, 10)], device=device)
    assert not device.registered


def test_closed_means_closed(weights: Path) -> None:
    tier = PinnedTier(extents_of(weights, [100]), device=SimulatedDevice(0))
    tier.close()
    tier.close()
    with pytest.raises(TransferError, match="closed"):
        tier.fetch(0, torch.empty(PAGE, dtype=torch.uint8))
