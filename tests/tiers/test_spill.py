"""A file that nobody sees and that is gone with its process; a disk without room is told before anything is computed."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from understudy.errors import TransferError, UsageError
from understudy.tiers import ReadSettings, spill
from understudy.tiers.memory import arena
from understudy.tiers.spill import SpillFile, file_system

PAGE = 4096
READ = ReadSettings(block=2 * PAGE, threads=2)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpillFile]:
    found = SpillFile(tmp_path / "cache", 64 * PAGE, READ)
    yield found
    found.close()


def numbers(file: SpillFile) -> torch.Tensor:
    """Pages of numbers, written to all of the file."""
    found = torch.arange(file.nbytes // 8).view(torch.uint8)
    file.write(0, found)
    return found


def test_what_is_written_comes_back_in_the_order_asked_for(file: SpillFile) -> None:
    written = numbers(file)
    rooms = [arena(4 * PAGE) for _ in range(3)]
    wanted = [[(page * PAGE, 3 * PAGE, PAGE)] for page in (60, 0, 7, 31, 8, 59, 2)]
    for [(offset, nbytes, place)], room in zip(wanted, file.stream(wanted, rooms), strict=True):
        assert torch.equal(room[place : place + nbytes], written[offset : offset + nbytes])
    assert file.traffic.bytes_read == 7 * 3 * PAGE and file.bytes_written == 64 * PAGE


def test_a_stream_that_is_left_disturbs_no_later_one(file: SpillFile) -> None:
    written, rooms = numbers(file), [arena(PAGE) for _ in range(4)]
    left = file.stream([[(page * PAGE, PAGE, 0)] for page in range(64)], rooms)
    next(left)
    left.close()  # type: ignore[attr-defined]
    for page, room in enumerate(file.stream([[(page * PAGE, PAGE, 0)] for page in range(64)], rooms)):
        assert torch.equal(room, written[page * PAGE : (page + 1) * PAGE])


def test_the_file_has_no_name_and_gives_its_room_back(tmp_path: Path) -> None:
    file = SpillFile(tmp_path, 8 * PAGE, READ)
    assert list(tmp_path.iterdir()) == [], "after a crash, nobody would remove it"
    assert os.fstat(file._file.fileno()).st_blocks * 512 >= 8 * PAGE, "the room is not taken yet"
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    file.close()
    file.close()
    assert len(list(Path("/proc/self/fd").iterdir())) < descriptors


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match=r"spill 32 MiB to the disk of .* MiB free: choose a smaller --context") as error:
        SpillFile(tmp_path, 32 << 20, READ)
    assert "\n" not in str(error.value)


def test_memory_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "file_system", lambda _: "tmpfs")
    with pytest.raises(UsageError, match="is memory"):
        SpillFile(tmp_path, PAGE, READ)


def test_the_innermost_mount_tells_the_file_system(tmp_path: Path) -> None:
    mounts = f"disk / ext4 rw 0 0\nmem {tmp_path} tmpfs rw 0 0\nother {tmp_path}x xfs rw 0 0\n"
    assert file_system(tmp_path / "a", lambda: mounts) == "tmpfs"
    assert file_system(tmp_path.parent, lambda: mounts) == "ext4"


def test_a_write_that_fails_is_an_error(file: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(TransferError, match="Writing keys and values"):
        file.write(0, arena(PAGE))
