"""Whoever hands a prefix over never waits for the disk, and what waits is bounded."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from understudy.prefixes import ROOM, memory_for
from understudy.prefixes.files import PrefixFiles
from understudy.prefixes.writer import PrefixWriter

IDENTITY = "ab" * 32
NAMES = [f"{number:032x}.tokens" for number in range(5)]
ONE = {"0 keys": torch.zeros(100)}


class Slow(PrefixFiles):
    """A disk that stands still until it is let go on."""

    def __init__(self, directory: Path):
        super().__init__(directory, 1 << 30, IDENTITY)
        self.going = threading.Event()
        self.order: list[str] = []

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.going.wait(60)
        super().write(name, tensors)

    def touch(self, name: str) -> bool:
        self.order.append(name)
        return super().touch(name)


def test_what_waits_is_bounded_and_all_that_was_taken_is_written(tmp_path: Path) -> None:
    files = Slow(tmp_path)
    writer = PrefixWriter(files, room=1000)
    assert writer.takes(5000), "the largest file is taken where nothing waits"
    for name in NAMES[:2]:
        assert writer.takes(400)
        writer.write(name, ONE)
    assert not writer.takes(400) and writer.takes(200)
    assert not files.has(NAMES[0])
    files.going.set()
    writer.flush()
    assert [files.has(name) for name in NAMES] == [True, True, False, False, False] and writer.takes(1000)
    writer.write(NAMES[2], ONE)
    writer.close()
    writer.close()
    assert files.has(NAMES[2])
    writer.write(NAMES[3], ONE)
    assert not files.has(NAMES[3]), "nothing is taken after the end"


def test_the_first_file_of_a_text_is_the_last_to_be_touched_and_lost_ones_are_told(tmp_path: Path) -> None:
    files, lost = Slow(tmp_path), []
    files.going.set()
    writer = PrefixWriter(files, lost=lost.append)
    writer.write(NAMES[1], ONE)
    writer.touch(NAMES[:3])
    writer.flush()
    assert files.order == NAMES[2::-1] and lost == [NAMES[2], NAMES[0]]
    writer.close()


def test_a_full_disk_is_told_once_and_all_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(PrefixFiles):
        def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
            raise OSError(28, "No space left on device")

    writer = PrefixWriter(Full(tmp_path, 1 << 20, IDENTITY))
    for name in NAMES:
        writer.write(name, ONE)
    writer.flush()
    assert "No space left on device" in writer.fault and writer.takes(ROOM)
    (message,) = caplog.messages
    assert str(tmp_path) in message and "No space left on device" in message and "\n" not in message
    writer.close()


def test_memory_counts_what_waits_and_one_file_beside_it() -> None:
    assert memory_for(10) == ROOM + 20 and memory_for(ROOM * 2) == ROOM * 6
