"""A copy never overtakes a reader, however late each stream runs: a simulated device executes the two queues in any order."""

import os
import random
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.simulated import Event, SimulatedDevice, Stream
from understudy.errors import StoreError, TransferError
from understudy.tiers import Extent, pinned
from understudy.tiers.memory import aligned, arena
from understudy.tiers.pinned import PinnedTier
from understudy.tiers.ring import Ring, smallest_ring
from understudy.tiers.route import FixedRoute

PAGE = 4096
LENGTH = 1 << 18
STALE = 0xFF


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


def run(
    weights: Path,
    lengths: Sequence[int],
    parts: int,
    held: int,
    spare: int,
    device: SimulatedDevice,
    kept: Collection[int] | None = None,
) -> Ring:
    """The host gives out work for `parts` parts without ever waiting; the device checks each when it gets there."""
    extents, content = extents_of(weights, lengths), weights.read_bytes()
    tier = PinnedTier(extents, device=device, held=kept, block=PAGE)
    capacity = smallest_ring(lengths, held) + spare
    ring = Ring(tier, FixedRoute(range(len(lengths))), capacity, allocate=lambda nbytes: arena(nbytes).fill_(STALE))

    def read(data: Tensor, extent: Extent) -> None:
        if bytes(data.numpy()) != content[extent.offset : extent.offset + extent.nbytes]:
            wrong.append(extent)

    wrong: list[Extent] = []

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
    assert not wrong, "a reader was overtaken"
    return ring


@given(
    lengths=st.lists(st.integers(2, 3 * PAGE), min_size=1, max_size=6),
    parts=st.integers(1, 25),
    held=st.integers(0, 2),
    spare=st.integers(0, 6 * PAGE),
    seed=st.integers(0, 10_000),
    kept=st.none() | st.frozensets(st.integers(0, 5)),
    refuse_after=st.sampled_from([0, 1, 1000]),
)
@settings(max_examples=150, deadline=None)
def test_no_copy_overtakes_a_reader(
    weights: Path,
    lengths: list[int],
    parts: int,
    held: int,
    spare: int,
    seed: int,
    kept: frozenset[int] | None,
    refuse_after: int,
) -> None:
    """Wherever a part lies: in pinned memory, in memory the driver refused to pin (0: all of it), or on disk."""
    device = SimulatedDevice(seed, refuse_after)
    run(weights, lengths, parts, held, spare, device, kept).close()
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


class Hasty(SimulatedDevice):
    """A device that the staging thread does not wait for before it fills a buffer again."""

    def happened(self, event: Event) -> bool:
        return threading.current_thread().name == "staging" or super().happened(event)

    def block_until(self, event: Event) -> None:
        assert threading.current_thread().name == "staging"


@pytest.mark.parametrize("refuse_after", [0, 1000])
def test_the_simulation_would_see_a_buffer_filled_too_early(weights: Path, refuse_after: int) -> None:
    """With what is on disk, and with what the driver refused to pin."""

    def overtaken(seed: int) -> bool:
        device = Hasty(seed, refuse_after)
        kept = None if refuse_after == 0 else {1}
        try:
            run(weights, [PAGE] * 6, 24, 1, 8 * PAGE, device, kept).close()
        except AssertionError:
            return True
        return False

    assert any(overtaken(seed) for seed in range(20))


def test_what_host_memory_does_not_hold_comes_from_disk_while_the_host_does_something_else(weights: Path) -> None:
    device = SimulatedDevice(2)
    # reading takes half a second, and asking for it no time
    tier = PinnedTier(extents_of(weights, [PAGE, 2 * PAGE, 100]), device=device, held={1}, throttle=16e3)
    assert tier.host_bytes == 2 * PAGE
    into = [arena(2 * PAGE).fill_(STALE) for _ in range(3)]
    fetches = [tier.fetch(index, into[index]) for index in range(3)]
    assert fetches[2].arrived is None
    deadline = time.perf_counter() + 60
    while fetches[2].arrived is None and time.perf_counter() < deadline:  # nobody asks for anything
        time.sleep(0.01)
    assert [fetch.arrived is not None for fetch in fetches] == [True] * 3
    device.finish(device.copies)
    content = weights.read_bytes()
    for extent, room in zip(tier.extents, into, strict=True):
        assert bytes(room[: extent.nbytes].numpy()) == content[extent.offset :][: extent.nbytes]
    assert tier.traffic.reads == 3
    tier.close()


def test_a_part_on_disk_is_checked_when_it_first_comes(weights: Path) -> None:
    seen: list[int] = []

    def verify(index: int, data: Tensor) -> None:
        seen.append(index)
        if len(seen) > 2:
            raise StoreError("part 2 is damaged")

    device = SimulatedDevice(0)
    tier = PinnedTier(extents_of(weights, [100, 200, 300]), device=device, held={0}, verify=verify)
    ring = Ring(tier, FixedRoute(range(3)), 3 * PAGE)
    ring.next().release()
    ring.next().release()
    with pytest.raises(StoreError, match="damaged"):
        ring.next()
    assert seen == [0, 1, 2]
    ring.close()
    assert not device.registered


def test_a_disk_that_fails_later_is_an_error_of_the_part(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(4 * PAGE))
    tier = PinnedTier(extents_of(path, [PAGE] * 4), device=SimulatedDevice(0), held={0, 1})
    ring = Ring(tier, FixedRoute(range(4)), PAGE)
    ring.next().release()
    os.truncate(path, 2 * PAGE)
    ring.next().release()
    with pytest.raises(TransferError, match="too short"):
        ring.next()
    ring.close()


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
