"""Whatever the tier does, whatever the sizes, whoever is late: a part is what it should be from `next` to `release`."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.adversaries import ADVERSARIES, Adversary, Eager, Failing, Lazy, Reordering, Short, Slow
from understudy.errors import StoreError, TransferError
from understudy.tiers import Extent, Tier
from understudy.tiers.disk import DiskTier
from understudy.tiers.memory import aligned, arena
from understudy.tiers.ring import Ring, Slot, smallest_ring
from understudy.tiers.route import FixedRoute

PAGE = 4096
STALE = 0xFF  # what a consumer must never see: the test's parts are free of it
LENGTH = 1 << 20


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ring") / "weights.bin"
    path.write_bytes(random.Random(1).randbytes(LENGTH).replace(b"\xff", b"\x01"))
    return path


def extents_of(path: Path, lengths: Sequence[int]) -> list[Extent]:
    offset, extents = 0, []
    for length in lengths:
        extents.append(Extent(path, offset, length))
        offset += aligned(length)
    assert offset <= LENGTH
    return extents


def poisoned(nbytes: int) -> Tensor:
    return arena(nbytes).fill_(STALE)


def expected(extent: Extent) -> bytes:
    with extent.path.open("rb") as file:
        file.seek(extent.offset)
        return file.read(extent.nbytes)


def check(slot: Slot, extents: Sequence[Extent]) -> None:
    assert bytes(slot.data.numpy()) == expected(extents[slot.index]), f"part {slot.index} is not what it should be"


def consume(ring: Ring, extents: Sequence[Extent], parts: int, held: int, chance: random.Random) -> None:
    """Read `parts` parts, holding some of the last `held`; released in any order, and poisoned the moment they are."""
    window: dict[int, Slot] = {}
    for number in range(parts):
        window[number] = slot = ring.next()
        assert slot.index == ring.route.parts[number % len(ring.route.parts)]
        check(slot, extents)
        for old in [old for old in window if old <= number - held or chance.random() < 0.4]:
            gone = window.pop(old)
            check(gone, extents)
            gone.data.fill_(STALE)
            gone.release()
    for slot in window.values():
        check(slot, extents)


lengths_of_parts = st.lists(st.integers(1, 5 * PAGE), min_size=1, max_size=12)


@pytest.mark.parametrize("name", [*ADVERSARIES, "disk"])
@given(lengths=lengths_of_parts, held=st.integers(0, 3), spare=st.integers(0, 12 * PAGE), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_part_is_right_from_next_to_release(
    weights: Path, name: str, lengths: list[int], held: int, spare: int, seed: int
) -> None:
    extents = extents_of(weights, lengths)
    chance = random.Random(seed)
    order = chance.sample(range(len(extents)), chance.randint(1, len(extents)))
    tier: Tier = DiskTier(extents, block=PAGE, threads=2) if name == "disk" else ADVERSARIES[name](extents)
    ring = Ring(tier, FixedRoute(order), smallest_ring([lengths[i] for i in order], held) + spare, allocate=poisoned)
    try:
        consume(ring, extents, chance.randint(1, 3 * len(order)), held, chance)
        ring.rewind()  # half way, with parts held and parts on their way
        consume(ring, extents, 2 * len(order) + 1, held, chance)
    finally:
        ring.close()


@given(lengths=lengths_of_parts, held=st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_smallest_always_has_room_for_the_next_part(weights: Path, lengths: list[int], held: int) -> None:
    ring = Ring(Eager(extents_of(weights, lengths)), FixedRoute(range(len(lengths))), smallest_ring(lengths, held))
    window: list[Slot] = []
    for _ in range(5 * len(lengths)):
        window.append(ring.next())
        if len(window) > held:
            window.pop(0).release()


def test_releasing_starts_the_next_fetch_at_once(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 6))
    ring = Ring(tier, FixedRoute(range(6)), 3 * PAGE)
    assert tier.asked == [0, 1, 2]
    slot = ring.next()
    assert tier.asked == [0, 1, 2]
    releaser = threading.Thread(target=slot.release)
    releaser.start()
    releaser.join()
    assert tier.asked == [0, 1, 2, 3]


def test_the_next_pass_comes_in_while_this_one_ends(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 3))
    ring = Ring(tier, FixedRoute(range(3)), 2 * PAGE)
    for _ in range(3):
        ring.next().release()
    assert tier.asked == [0, 1, 2, 0, 1]


def test_room_comes_back_oldest_first(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 5))
    ring = Ring(tier, FixedRoute(range(5)), 3 * PAGE)
    first, second = ring.next(), ring.next()
    second.release()
    assert tier.asked == [0, 1, 2], "the room behind a part still read was given away"
    first.release()
    assert tier.asked == [0, 1, 2, 3, 4]


def test_releasing_twice_is_releasing_once(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 6))
    ring = Ring(tier, FixedRoute(range(6)), 2 * PAGE)
    slot = ring.next()
    slot.release()
    slot.release()
    assert tier.asked == [0, 1, 2] and tier.released == 2  # the other is for what the memory was used for before


def test_a_slot_from_before_a_rewind_gives_nothing_back(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 6))
    ring = Ring(tier, FixedRoute(range(6)), 2 * PAGE)
    old = ring.next()
    ring.rewind()
    new = ring.next()
    asked = len(tier.asked)
    old.release()
    assert len(tier.asked) == asked
    check(new, tier.extents)


@pytest.mark.parametrize("make", [Lazy, Reordering, Slow])
def test_a_cancelled_fetch_writes_nothing_after_a_rewind(weights: Path, make: type[Adversary]) -> None:
    extents = extents_of(weights, [3 * PAGE, PAGE, 2 * PAGE, PAGE])
    ring = Ring(make(extents), FixedRoute(range(4)), 5 * PAGE, allocate=poisoned)
    for _ in range(20):
        ring.next().release()
        ring.rewind()
        check(ring.next(), extents)
    ring.close()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_failure_is_raised_until_rewound_and_then_the_ring_works(weights: Path, at_once: bool) -> None:
    tier = Failing(extents_of(weights, [PAGE] * 5), 3, at_once)
    ring = Ring(tier, FixedRoute(range(5)), 2 * PAGE)
    with pytest.raises(TransferError, match="fetch 3"):
        for _ in range(5):
            check(slot := ring.next(), tier.extents)
            slot.release()
    asked = len(tier.asked)
    assert ring.at_hand is None and ring.full, "whoever polls must get to the error"
    with pytest.raises(TransferError, match="fetch 3"):
        ring.next()
    assert len(tier.asked) == asked, "nothing more is read after a failure"
    ring.rewind()
    consume(ring, tier.extents, 10, 1, random.Random(0))


def test_after_a_failure_a_release_reads_nothing_more(weights: Path) -> None:
    tier = Failing(extents_of(weights, [PAGE] * 6), 1)
    ring = Ring(tier, FixedRoute(range(6)), 3 * PAGE)
    slot = ring.next()
    with pytest.raises(TransferError, match="fetch 1"):
        ring.next()
    slot.release()
    assert tier.asked == [0, 1, 2]


def test_half_a_part_is_an_error_and_never_a_part(weights: Path) -> None:
    ring = Ring(Short(extents_of(weights, [PAGE] * 2)), FixedRoute(range(2)), 2 * PAGE)
    with pytest.raises(TransferError, match="wanted 4096 bytes, got 2048"):
        ring.next()


def test_full_and_at_hand(weights: Path) -> None:
    tier = Lazy(extents_of(weights, [PAGE] * 4))
    ring = Ring(tier, FixedRoute(range(4)), 2 * PAGE)
    assert ring.at_hand is None and not ring.full
    tier.hurry(tier.pending[1])
    assert ring.at_hand is None and not ring.full
    tier.hurry(tier.pending[0])
    assert ring.at_hand == 0 and ring.full
    ring.next().release()
    assert ring.at_hand == 1 and not ring.full


def test_each_part_is_shown_once_at_its_first_arrival(weights: Path) -> None:
    seen: list[int] = []
    extents = extents_of(weights, [PAGE, 100, 5000])
    ring = Ring(Lazy(extents), FixedRoute([2, 0, 1]), 4 * PAGE, on_ready=lambda index, data: seen.append(index))
    for _ in range(7):
        ring.next().release()
    assert seen == [2, 0, 1]


def test_a_part_that_is_not_what_it_should_be_stops_the_pass(weights: Path) -> None:
    bad = [True]

    def verify(index: int, data: Tensor) -> None:
        if index == 1 and bad:
            raise StoreError("part 1 is damaged")

    tier = Eager(extents_of(weights, [PAGE] * 3))
    ring = Ring(tier, FixedRoute(range(3)), 3 * PAGE, on_ready=verify)
    ring.next().release()
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged"):
            ring.next()
    bad.clear()
    ring.rewind()
    consume(ring, tier.extents, 6, 1, random.Random(0))


def test_an_interrupted_wait_loses_nothing(weights: Path) -> None:
    class Interrupted(Eager):
        def begin(self, wanted: object) -> None:
            pass

        def hurry(self, wanted: object) -> None:
            self.hurry = super().begin  # type: ignore[method-assign]
            raise KeyboardInterrupt

    tier = Interrupted(extents_of(weights, [PAGE] * 3))
    ring = Ring(tier, FixedRoute(range(3)), 2 * PAGE)
    with pytest.raises(KeyboardInterrupt):
        ring.next()
    consume(ring, tier.extents, 5, 1, random.Random(0))


def test_holding_more_than_there_is_room_for_says_so_and_does_not_hang(weights: Path) -> None:
    ring = Ring(Eager(extents_of(weights, [PAGE] * 4)), FixedRoute(range(4)), 2 * PAGE)
    held = [ring.next(), ring.next()]
    with pytest.raises(AssertionError, match="2 parts are held"):
        ring.next()
    assert len(held) == 2


def test_a_part_that_can_never_fit_is_refused_at_once(weights: Path) -> None:
    with pytest.raises(AssertionError, match="5000 bytes in a ring of 4096"):
        Ring(Eager(extents_of(weights, [5000])), FixedRoute([0]), PAGE)


def test_closed_means_closed(weights: Path) -> None:
    tier = Eager(extents_of(weights, [PAGE] * 4))
    ring = Ring(tier, FixedRoute(range(4)), 2 * PAGE)
    slot = ring.next()
    ring.close()
    slot.release()
    with pytest.raises(TransferError, match="closed"):
        ring.next()
    assert tier.closed and len(tier.asked) == 2


@pytest.fixture
def disk_ring(weights: Path) -> Iterator[Ring]:
    """Each part takes a tenth of a second."""
    ring = Ring(DiskTier(extents_of(weights, [10 * PAGE] * 8), throttle=4e5), FixedRoute(range(8)), 20 * PAGE)
    yield ring
    ring.close()


def test_time_is_accounted_for(disk_ring: Ring) -> None:
    for _ in range(8):
        disk_ring.next().release()
    stats = disk_ring.stats
    assert 8 * 10 * PAGE <= stats.bytes_read <= 10 * 10 * PAGE
    assert 0 < stats.wait_seconds < 100 and 0.7 < stats.busy_seconds < 100
    assert 1e3 < stats.link_bytes_per_second < 4.5e5


def test_while_the_reader_works_the_link_does_too(disk_ring: Ring) -> None:
    """A slow reader finds the ring full each time it comes back: it never waits after the first part."""
    disk_ring.next().release()
    waited = disk_ring.stats.wait_seconds
    for _ in range(7):
        deadline = time.monotonic() + 60
        while disk_ring.at_hand is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert disk_ring.at_hand is not None
        disk_ring.next().release()
    assert disk_ring.stats.wait_seconds - waited < 0.7  # what it would have waited in all


def test_a_tensor_outlives_its_ring(weights: Path) -> None:
    extents = extents_of(weights, [PAGE])
    ring = Ring(Eager(extents), FixedRoute([0]), PAGE)
    slot = ring.next()
    ring.close()
    del ring
    check(slot, extents)
    assert torch.equal(slot.data, slot.data.clone())


@pytest.mark.parametrize(("parts", "goes"), [(32, 8), (3, 64)], ids=["plenty", "little"])
def test_room_of_small_parts_is_asked_for_again_in_few_goes_while_plenty_is_ahead(weights: Path, parts: int, goes: int) -> None:
    """A ring of many parts asks for several at once; one of few asks for each as soon as there is room."""
    extents = extents_of(weights, [PAGE] * 64)
    ring = Ring(DiskTier(extents), FixedRoute(range(64)), parts * PAGE)
    seen, before = 0, ring._coming[-1]
    for _ in range(64):
        ring.next().release()
        seen += ring._coming[-1] is not before
        before = ring._coming[-1]
    assert seen == goes
    assert not ring.full or ring._place() is None
    assert ring._place() is None, "whoever asks whether it is full has it filled"
    ring.close()
