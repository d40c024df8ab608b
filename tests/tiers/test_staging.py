"""Parts from anywhere are copied in the order asked for, through a few buffers; what fails, fails alone."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.simulated import SimulatedDevice, Stream
from understudy.errors import StoreError, TransferError
from understudy.tiers import Extent
from understudy.tiers.disk import DiskTier
from understudy.tiers.memory import ALIGNMENT, aligned, arena
from understudy.tiers.staging import Staging
from understudy.tiers.streams import PinnedFetch

SIZES = [4096, 100, 9000, 4097, 20000, 1]
MOST = aligned(max(SIZES))


class Noting(SimulatedDevice):
    """Notes how many bytes each copy has, in order."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.sizes: list[int] = []

    def copy(self, stream: Stream, source: Tensor, into: Tensor) -> None:
        self.sizes.append(len(into))
        super().copy(stream, source, into)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staging") / "weights.bin"
    path.write_bytes(random.Random(4).randbytes(sum(map(aligned, SIZES))))
    return path


class World:
    """A staging of `SIZES` parts: part i is pinned, in plain memory or on disk as `places[i]` says."""

    def __init__(
        self, path: Path, places: list[str], buffers: int = 2, seed: int = 0, verify: Callable[[int, Tensor], None] | None = None
    ) -> None:
        extents, offset = [], 0
        for size in SIZES:
            extents.append(Extent(path, offset, size))
            offset += aligned(size)
        content = path.read_bytes()
        self.parts = [torch.tensor(list(content[e.offset : e.offset + e.nbytes]), dtype=torch.uint8) for e in extents]
        self.device = Noting(seed)
        self.disk = DiskTier(extents, block=ALIGNMENT, threads=2)
        held = {place: {i: self.parts[i] for i, at in enumerate(places) if at == place} for place in ("pinned", "plain")}
        room = [arena(MOST) for _ in range(buffers)]
        self.staging = Staging(self.device, room, held["pinned"], held["plain"], self.disk, verify)

    def ask(self, index: int) -> PinnedFetch:
        into = torch.full((SIZES[index],), 255, dtype=torch.uint8)
        fetch = PinnedFetch(self.device, self.device.copies, index, into, ())
        self.staging.submit(fetch)
        return fetch

    def arrived(self, fetch: PinnedFetch) -> bool:
        """Is what was asked for there, once the device has done all its work? Raises what the fetch raises."""
        fetch.wait()
        self.device.finish(self.device.copies)
        self.device.finish(self.device.compute)
        return torch.equal(fetch.into, self.parts[fetch.index])

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self.staging.close()
        self.disk.close()


PLACES = st.lists(st.sampled_from(["pinned", "plain", "disk"]), min_size=len(SIZES), max_size=len(SIZES))
ORDER = st.lists(st.integers(0, len(SIZES) - 1), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(PLACES, ORDER, st.integers(1, 3), st.integers(0, 1000))
def test_parts_arrive_whole_in_the_order_asked_for(
    weights: Path, places: list[str], order: list[int], buffers: int, seed: int
) -> None:
    looked: list[int] = []
    with World(weights, places, buffers, seed, lambda index, _: looked.append(index)) as world:
        fetches = [world.ask(index) for index in order]
        assert all(world.arrived(fetch) for fetch in fetches)
        assert world.device.sizes == [SIZES[index] for index in order]
    read = {index for index in order if places[index] == "disk"}
    assert sorted(looked) == sorted(read), "what was read is looked at once"


def test_a_part_with_a_wrong_checksum_fails_and_the_others_come(weights: Path) -> None:
    def verify(index: int, data: Tensor) -> None:
        if index == 1:
            raise StoreError("part 1 is damaged")

    with World(weights, ["disk"] * len(SIZES), buffers=1, verify=verify) as world:
        fetches = [world.ask(index) for index in (0, 1, 2, 1, 3)]
        for fetch in fetches:
            if fetch.index != 1:
                assert world.arrived(fetch)
                continue
            with pytest.raises(StoreError, match="part 1 is damaged"):
                fetch.wait()
            assert fetch.done() and fetch.arrived is None
            assert set(fetch.into.tolist()) == {255}, "nothing was copied"


def test_what_the_driver_raises_is_told_and_the_next_copy_works(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(weights, ["pinned", "plain"] + ["disk"] * 4) as world:
        with monkeypatch.context() as patch:

            said = {"CUDA error: invalid argument\nmore lines": "CUDA error: invalid argument", "": "RuntimeError"}
            for index, (text, line) in itertools.product(range(3), said.items()):

                def refuse(*_: object, text: str = text) -> None:
                    raise RuntimeError(text)

                patch.setattr(world.device, "copy", refuse)
                with pytest.raises(TransferError, match=f"^A copy to the device failed: {line}$"):
                    world.ask(index).wait()
        assert all(world.arrived(world.ask(index)) for index in range(3))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_thread_ends_all_that_is_asked_for_and_nobody_waits_for_ever(weights: Path) -> None:
    def verify(index: int, data: Tensor) -> None:
        assert index != 1, "a bug"

    with World(weights, ["disk"] * len(SIZES), buffers=1, verify=verify) as world:
        for fetch in [world.ask(index) for index in (1, 2, 3)]:
            with pytest.raises(TransferError, match="broke: load the model again"):
                fetch.wait()
        with pytest.raises(TransferError, match="broke: load the model again"):
            world.ask(0).wait()
        world.staging.cancel()
        assert not world.staging.busy and world.device.sizes == []


@pytest.fixture
def slow(weights: Path) -> Iterator[World]:
    with World(weights, ["disk"] * len(SIZES), buffers=2) as world:
        yield world


@pytest.mark.parametrize("seed", range(5))
def test_after_stopping_nothing_asked_for_before_is_copied_and_buffers_are_free(slow: World, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(5):
        fetches = [slow.ask(chance.randrange(len(SIZES))) for _ in range(chance.randrange(6))]
        slow.staging.cancel()
        given = len(slow.device.sizes)
        assert not slow.staging.busy and all(fetch._settled.is_set() for fetch in fetches)
        begun = [fetch.arrived is not None for fetch in fetches]
        assert begun == sorted(begun, reverse=True), "the first ones, if any"
        assert slow.arrived(slow.ask(chance.randrange(len(SIZES))))
        assert len(slow.device.sizes) == given + 1
