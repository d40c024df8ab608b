"""The bytes of the file, whatever the sizes, and one clear error for whatever a disk may do."""

import errno
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import TransferError
from understudy.tiers import Extent
from understudy.tiers.disk import DiskFetch, DiskTier
from understudy.tiers.file import File
from understudy.tiers.memory import aligned, arena

PAGE = 4096
LENGTH = 1_000_003  # not a whole number of pages: the last extent ends with the file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "weights.bin"
    path.write_bytes(random.Random(2).randbytes(LENGTH))
    return path


def fetch(tier: DiskTier, index: int) -> tuple[DiskFetch, memoryview]:
    nbytes = tier.extents[index].nbytes
    into = arena(aligned(nbytes))
    return tier.fetch(index, into), into.numpy().data[:nbytes]


def read_all(path: Path, extents: Sequence[Extent], **options: Any) -> DiskTier:
    """Every extent through one tier, compared with the file; the tier, closed."""
    tier = DiskTier(extents, **options)
    coming = [fetch(tier, index) for index in range(len(extents))]
    content = path.read_bytes()
    for extent, (one, data) in zip(extents, coming, strict=True):
        one.wait()
        assert one.done()
        assert data == content[extent.offset : extent.offset + extent.nbytes]
    tier.close()
    return tier


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("disk-")]


@given(
    pieces=st.lists(st.tuples(st.integers(0, LENGTH // PAGE), st.integers(1, 40 * PAGE)), min_size=1, max_size=10),
    block=st.sampled_from([PAGE, 3 * PAGE, 64 * PAGE]),
    threads=st.integers(1, 4),
    direct=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_extents(weights: Path, pieces: list[tuple[int, int]], block: int, threads: int, direct: bool) -> None:
    extents = [Extent(weights, page * PAGE, min(nbytes, LENGTH - page * PAGE)) for page, nbytes in pieces]
    tier = read_all(weights, extents, block=block, threads=threads, direct=direct)
    assert tier.traffic.bytes_read == sum(extent.nbytes for extent in extents)
    assert tier.traffic.busy_seconds > 0


def test_several_files(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(range(256)) * 16)
    tier = DiskTier([Extent(weights, 0, 100), Extent(other, 0, 4096), Extent(weights, PAGE, 100)])
    for index, path in enumerate([weights, other, weights]):
        one, data = fetch(tier, index)
        one.wait()
        offset = tier.extents[index].offset
        assert data == path.read_bytes()[offset : offset + len(data)]
    tier.close()


def test_small_neighbours_come_in_one_read(weights: Path) -> None:
    extents = [Extent(weights, page * PAGE, 100) for page in range(200)]
    tier = DiskTier(extents, block=64 * PAGE, threads=1, throttle=1e6)
    content = weights.read_bytes()
    coming = [fetch(tier, index) for index in range(200)]
    for (one, data), extent in zip(coming, extents, strict=True):
        one.wait()
        assert data == content[extent.offset : extent.offset + 100]
    assert tier.traffic.reads <= 20
    assert tier.traffic.bytes_read == 200 * 100
    tier.close()


def test_what_was_asked_first_is_complete_first(weights: Path) -> None:
    tier = DiskTier([Extent(weights, 0, 50 * PAGE), Extent(weights, 60 * PAGE, 50 * PAGE)], block=PAGE, throttle=4e6)
    (first, _), (second, _) = fetch(tier, 0), fetch(tier, 1)
    first.wait()
    assert not second.done()
    second.wait()
    tier.close()


def test_no_thread_and_no_file_is_left_behind(weights: Path) -> None:
    before, files = readers(), len(list(Path("/proc/self/fd").iterdir()))
    tier = DiskTier([Extent(weights, 0, LENGTH)], block=PAGE, threads=3, throttle=1e6)
    fetch(tier, 0)
    assert len(readers()) == len(before) + 3
    tier.cancel()
    tier.close()
    tier.close()
    assert readers() == before and len(list(Path("/proc/self/fd").iterdir())) == files
    with pytest.raises(TransferError, match=r"closed"):
        fetch(tier, 0)


def test_close_ends_what_is_queued(weights: Path) -> None:
    tier = DiskTier([Extent(weights, 0, PAGE)] * 50, threads=1, throttle=PAGE * 20)
    coming = [fetch(tier, index)[0] for index in range(50)]
    tier.close()
    with pytest.raises(TransferError, match=r"weights\.bin was stopped"):
        coming[-1].wait()


def test_after_cancel_nothing_is_written(weights: Path) -> None:
    # the first would take five seconds
    extents = [Extent(weights, 0, LENGTH), Extent(weights, 0, 5 * PAGE)]
    tier = DiskTier(extents, block=PAGE, threads=2, throttle=2e5)
    into = arena(aligned(LENGTH))
    one = tier.fetch(0, into)
    time.sleep(0.05)
    tier.cancel()
    assert tier.traffic.bytes_read < LENGTH / 2, "what was not begun is not read any more"
    into.fill_(7)
    time.sleep(0.1)
    assert bool((into == 7).all())
    with pytest.raises(TransferError, match="stopped"):
        one.wait()
    tier.fetch(1, into).wait()
    assert into.numpy().data[: 5 * PAGE] == weights.read_bytes()[: 5 * PAGE]
    tier.close()


def test_throttle_is_the_speed_of_all_threads_together(weights: Path) -> None:
    tier = DiskTier([Extent(weights, 0, 100 * PAGE)], block=2 * PAGE, threads=4, throttle=4e6)
    began = time.perf_counter()
    fetch(tier, 0)[0].wait()
    assert time.perf_counter() - began > 0.09
    tier.close()


def refuse_at_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)


def refuse_at_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def refusing(descriptor: int, buffers: Any, offset: int) -> int:
        if int(Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0], 8) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refusing)


@pytest.mark.parametrize("refuse", [refuse_at_open, refuse_at_read])
def test_direct_io_refused_is_buffered_and_said(weights: Path, monkeypatch: pytest.MonkeyPatch, refuse: Any) -> None:
    refuse(monkeypatch)
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: dropped.append((offset, length)))
    tier = read_all(weights, [Extent(weights, 0, LENGTH)], block=100 * PAGE)
    assert not tier.direct
    assert "refuses direct I/O" in tier.note and "page cache" in tier.note
    assert sum(length for _, length in dropped) == LENGTH


def test_direct_io_granted_needs_no_note(weights: Path) -> None:
    tier = DiskTier([Extent(weights, 0, LENGTH)])
    if tier.direct:
        assert tier.note == ""
    tier.close()


def test_a_missing_file(tmp_path: Path) -> None:
    before = readers()
    with pytest.raises(TransferError, match=r"Cannot open .*gone\.bin: No such file"):
        DiskTier([Extent(tmp_path / "gone.bin", 0, 10)])
    assert readers() == before


def test_a_file_that_is_too_short_is_found_before_reading(weights: Path) -> None:
    with pytest.raises(TransferError, match=rf"weights\.bin is too short: wanted {2 * PAGE} bytes at 999424, got 579"):
        DiskTier([Extent(weights, 244 * PAGE, 2 * PAGE)])


def test_a_file_truncated_under_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(20 * PAGE))
    tier = DiskTier([Extent(path, 0, PAGE), Extent(path, 2 * PAGE, 18 * PAGE)], block=64 * PAGE)
    os.truncate(path, 5 * PAGE + 10)
    one, _ = fetch(tier, 1)
    with pytest.raises(TransferError, match=rf"too short: wanted {18 * PAGE} bytes at {2 * PAGE}, got {3 * PAGE + 10}"):
        one.wait()
    fetch(tier, 0)[0].wait()  # the others still come
    tier.close()


def test_a_disk_error_names_file_and_place(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = DiskTier([Extent(weights, PAGE, 100)])

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    one, _ = fetch(tier, 0)
    with pytest.raises(TransferError, match=r"Reading 100 bytes at 4096 of .*weights\.bin failed: Input/output error"):
        one.wait()
    tier.close()


@pytest.mark.parametrize("most", [100, 511, 512, PAGE, PAGE + 1, 7 * PAGE - 1])
def test_a_system_that_gives_less_than_asked_is_asked_again(
    weights: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    real = os.preadv
    given_so_far: dict[int, int] = {}

    def partial(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        assert offset % PAGE == 0
        allowed = given_so_far[offset] = given_so_far.get(offset, 0) + most  # a little more each time it is asked
        came = 0
        for buffer in buffers:
            size = min(len(buffer), allowed - came)
            if size == 0:
                break
            whole = arena(aligned(len(buffer))).numpy().data
            got = min(size, real(descriptor, [whole], offset + came))
            buffer[:got] = whole[:got]
            came += got
        return came

    file = File(weights)
    monkeypatch.setattr(os, "preadv", partial)
    buffers = [arena(2 * PAGE).numpy().data, arena(PAGE).numpy().data, arena(3 * PAGE).numpy().data]
    file.read(PAGE, buffers, 5 * PAGE + 7)
    file.close()
    assert b"".join(buffers)[: 5 * PAGE + 7] == weights.read_bytes()[PAGE : 6 * PAGE + 7]


def test_unaligned_extents_are_a_bug(weights: Path) -> None:
    with pytest.raises(AssertionError, match="not aligned"):
        DiskTier([Extent(weights, 100, 10)])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("threads", [1, 3])
def test_after_a_bug_in_a_reader_nobody_waits_for_ever(weights: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(File, "read", bug)
    extents = [Extent(weights, PAGE * 5 * i, 3 * PAGE) for i in range(8)]
    before = readers()
    tier = DiskTier(extents, block=PAGE, threads=threads)
    for _ in range(2):
        for index in range(len(extents)):
            with pytest.raises(TransferError, match=r"^The reader of .*weights\.bin broke: load the model again\.$"):
                fetch(tier, index)[0].wait()
    tier.cancel()
    tier.close()
    assert readers() == before
