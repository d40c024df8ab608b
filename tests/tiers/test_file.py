"""Bytes are those of the file, however a read is cut short and wherever buffers end; a file that is too short is refused."""

import errno
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import TransferError
from understudy.tiers import Extent
from understudy.tiers.file import File
from understudy.tiers.memory import ALIGNMENT, arena

PAGES = 12
LENGTH = PAGES * ALIGNMENT - 1000
CONTENT = random.Random(5).randbytes(LENGTH)


@pytest.fixture(scope="module")
def path() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "weights.bin"
        place.write_bytes(CONTENT)
        yield place


def buffers_of(sizes: Sequence[int]) -> list[memoryview]:
    return [arena(pages * ALIGNMENT).numpy().data for pages in sizes]


def joined(buffers: Sequence[memoryview]) -> bytes:
    return b"".join(map(bytes, buffers))


@pytest.mark.parametrize("direct", [True, False])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, PAGES - 1), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_reads_that_come_in_pieces_are_whole(path: Path, direct: bool, first: int, sizes: list[int], data: st.DataObject) -> None:
    offset = first * ALIGNMENT
    needed = data.draw(st.integers(1, min(sum(sizes) * ALIGNMENT, LENGTH - offset)))
    preadv, reads = os.preadv, []

    def piecewise(descriptor: int, into: list[memoryview], start: int) -> int:
        """A read that gives less than was asked for, at least a byte more than a page before."""
        assert start % ALIGNMENT == 0 and all(len(buffer) % ALIGNMENT == 0 for buffer in into)
        came: int = preadv(descriptor, into, start)
        reads.append(start)
        return min(came, data.draw(st.integers(1, max(1, came)))) if len(reads) < 6 else came

    file = File(path, direct)
    buffers = buffers_of(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", piecewise)
        try:
            file.read(offset, buffers, needed)
        except TransferError:
            # no more came than before: the kernel says that the file ends
            assert len(reads) > 1
            return
        finally:
            file.close()
    assert reads and joined(buffers)[:needed] == CONTENT[offset : offset + needed]


@pytest.mark.parametrize("direct", [True, False])
def test_a_read_goes_on_from_the_page_where_it_was_cut(path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, reads = os.preadv, []
    file = File(path, direct)

    def cut(descriptor: int, into: list[memoryview], start: int) -> int:
        reads.append(start // ALIGNMENT)
        came: int = preadv(descriptor, into, start)
        if len(reads) > 1:
            return came
        # what was not read is not there
        into[1][200:] = bytes(len(into[1]) - 200)
        return ALIGNMENT + 200

    monkeypatch.setattr(os, "preadv", cut)
    buffers = buffers_of([1, 3])
    file.read(2 * ALIGNMENT, buffers, 4 * ALIGNMENT)
    assert reads == [2, 3], "the page that was read in part is read again"
    assert joined(buffers) == CONTENT[2 * ALIGNMENT : 6 * ALIGNMENT]
    file.close()


def test_a_file_that_ends_too_early_is_refused_before_and_while_it_is_read(path: Path) -> None:
    file = File(path)
    file.require(Extent(path, 0, LENGTH))
    with pytest.raises(TransferError, match=rf"too short: wanted {ALIGNMENT} bytes at {11 * ALIGNMENT}, got 3096\. Delete"):
        file.require(Extent(path, 11 * ALIGNMENT, ALIGNMENT))
    with pytest.raises(TransferError, match=r"too short: wanted 8192 bytes at 45056, got 3096\. Delete"):
        file.read(11 * ALIGNMENT, buffers_of([2]), 2 * ALIGNMENT)
    file.close()


def test_a_read_that_fails_says_what_and_where(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    file = File(path)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(TransferError, match=r"^Reading 10 bytes at 0 of .*weights.bin failed: Input/output error\. Check"):
        file.read(0, buffers_of([1]), 10)
    file.close()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no direct I/O on this system")
@pytest.mark.parametrize("where", ["open", "preadv"])
def test_a_file_system_without_direct_reads_is_read_through_the_cache_and_says_so(
    path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = getattr(os, where)
    refused: list[int] = []

    def refusing(*given: Any) -> Any:
        if where == "preadv" or given[1] & os.O_DIRECT:
            refused.append(1)
            raise OSError(errno.EINVAL, "Invalid argument")
        return genuine(*given)

    monkeypatch.setattr(os, where, refusing)
    file = File(path)
    monkeypatch.undo()
    assert refused == [1] and not file.direct and "refuses direct I/O" in file.note
    buffers = buffers_of([1])
    file.read(0, buffers, 100)
    assert joined(buffers)[:100] == CONTENT[:100]
    file.close()
    asked = File(path, direct=False)
    assert "as asked" in asked.note and not asked.direct
    asked.close()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"^Cannot open .*/none: No such file or directory\. Prepare"):
        File(tmp_path / "none")
