"""What is written lies on whole pages, a journal forgets what was cut off, and one process at a time holds the lock."""

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy.errors import StoreError
from understudy.weights import writing
from understudy.weights.files import checksum
from understudy.weights.writing import Extents, Journal, await_process, explained, lock_of, only_process


def test_extents_begin_on_pages_and_read_back(tmp_path: Path) -> None:
    extents = Extents(tmp_path / "file", 0)
    first = extents.append([torch.arange(3, dtype=torch.uint8), torch.arange(3, 5, dtype=torch.uint8)], torch.uint8, (5,))
    second = extents.add(torch.ones(2, 1025, dtype=torch.float32))
    extents.close()
    assert (first.offset, second.offset) == (0, 4096) and (tmp_path / "file").stat().st_size == 4096 + 3 * 4096
    assert (tmp_path / "file").read_bytes()[:6] == bytes([0, 1, 2, 3, 4, 0])
    assert first.checksum == checksum([torch.arange(5, dtype=torch.uint8)]) and second.shape == (2, 1025)


@pytest.mark.parametrize("refused", ["", "when opened", "when written"])
def test_long_extents_pass_the_cache_where_they_may(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "TOGETHER", 3 * 4096)
    monkeypatch.setattr(writing, "LONG", 2 * 4096)
    direct: list[int] = []
    opened, write = os.open, os.pwrite

    def open_(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT and refused == "when opened":
            raise OSError(errno.EINVAL, "refused")
        # files in memory know nothing of it: as if they did
        descriptor = opened(path, flags & ~os.O_DIRECT, *mode)
        if flags & os.O_DIRECT:
            direct.append(descriptor)
        return descriptor

    def pwrite(descriptor: int, view: memoryview, offset: int) -> int:
        if descriptor in direct:
            assert offset % 4096 == 0 and len(view) % 4096 == 0
            assert np.frombuffer(view, np.uint8).ctypes.data % 4096 == 0
            if refused == "when written":
                raise OSError(errno.EINVAL, "refused")
            passed.append(len(view))
            # as a disk may: a page less than asked for
            view = view[:-4096] if len(view) > 4096 else view
        return write(descriptor, view, offset)

    passed: list[int] = []
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    extents = Extents(tmp_path / "file", 0)
    # lengths that end inside a page, and pieces that cross what is written together
    made = [torch.randint(0, 256, (n,), dtype=torch.uint8) for n in (5000, 7000, 4096, 20001)]
    stored = [extents.append(made, torch.uint8, (36097,)), extents.add(made[2]), extents.add(made[3])]
    extents.close()
    whole = (tmp_path / "file").read_bytes()
    expected = [torch.cat(made), made[2], made[3]]
    for each, bytes_ in zip(stored, expected, strict=True):
        assert whole[each.offset : each.offset + each.nbytes] == bytes(bytes_.tolist())
        assert each.offset % 4096 == 0 and each.checksum == checksum([bytes_])
        end = each.offset + each.nbytes
        assert not any(whole[end : end + -end % 4096]), "the rest of a page is zeros"
    assert bool(passed) == (not refused)


def test_what_lies_past_the_end_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 9000)
    extents = Extents(tmp_path / "file", 4096)
    assert (tmp_path / "file").stat().st_size == 4096
    assert extents.add(torch.zeros(1)).offset == 4096
    extents.cut(0)
    assert extents.end == 0 == (tmp_path / "file").stat().st_size
    extents.close()


def test_a_journal_goes_on_and_starts_over_for_another_build(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, {"of": "a"})
    journal.keep(0)
    journal.add({"key": 1})
    journal.add({"key": 2})
    with path.open("a") as file:
        file.write('{"key": 3')
    again = Journal(path, {"of": "a"})
    assert again.records == [{"key": 1}, {"key": 2}], "a line that was not written to its end is none"
    again.keep(1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"of": "a"}, {"key": 1}]
    assert Journal(path, {"of": "b"}).records == []


def test_a_journal_is_not_lost_where_a_shorter_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal", {"of": "a"})
    journal.keep(0)
    journal.add({"key": 1})

    def full(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode()[:3])
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "write_text", full)
        journal.keep(1)
    assert Journal(tmp_path / "journal", {"of": "a"}).records == [{"key": 1}]


def test_a_failed_write_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    for code, remedy in ((28, "Free some space"), (13, "Make it writable")):
        with pytest.raises(StoreError, match=rf"{tmp_path} failed: .*{remedy}, or go away"), explained(tmp_path, "go away"):
            raise OSError(code, os.strerror(code))


def test_a_lock_is_removed_and_its_holder_waits_for_nobody(tmp_path: Path) -> None:
    waited: list[str] = []
    with only_process(tmp_path / "lock", lambda: waited.append("waiting")):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists() and waited == []


def test_a_file_where_a_directory_is_needed_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(StoreError, match=r"it, or what it is in, is a file\. Move that, or choose"), explained(place):
            place.mkdir(parents=True)


def test_a_place_without_room_for_a_lock_is_told(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    said = r"Is a directory.* Make it writable, or choose another directory with -o"
    with pytest.raises(StoreError, match=said), only_process(tmp_path / "lock", lambda: None, "choose another directory with -o"):
        pytest.fail("nothing is locked")


def test_who_awaits_a_process_takes_no_lock_and_passes_one_that_is_gone(tmp_path: Path) -> None:
    lock = lock_of(tmp_path / "store")
    assert lock == tmp_path / "store.lock"
    waited: list[str] = []
    await_process(lock, lambda: waited.append("for nobody"))
    assert not lock.exists()
    lock.touch()
    await_process(lock, lambda: waited.append("for one that was killed"))
    assert not waited

    done = threading.Event()
    with only_process(lock, lambda: None):
        thread = threading.Thread(target=lambda: (await_process(lock, lambda: waited.append("for one that runs")), done.set()))
        thread.start()
        assert not done.wait(0.2) and waited == ["for one that runs"]
    thread.join()
    assert done.is_set() and not lock.exists()
