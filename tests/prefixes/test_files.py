"""A file of a prefix is whole, and the one that was asked for, or it is as if it were not there."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from understudy.errors import UsageError
from understudy.prefixes import files as module
from understudy.prefixes.files import PrefixFiles, directory_of

LIMIT = 1 << 20
IDENTITY = "0123456789abcdef" * 4
TYPES = [torch.bfloat16, torch.float32, torch.float16]


def named(number: int) -> str:
    return f"{number:032x}.tokens"


def some(seed: int, numbers: int = 40) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {f"{i} keys": torch.randn(2, numbers, 4, generator=chance).to(kind) for i, kind in enumerate(TYPES)}


def same(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> bool:
    if found is None or found.keys() != expected.keys():
        return False
    return all(torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in found)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    files = PrefixFiles(tmp_path, LIMIT, IDENTITY)
    assert files.read(named(1)) is None and not files.has(named(1)) and files.damaged == 0
    files.write(named(1), some(1))
    files.write(named(2), {})
    assert same(files.read(named(1)), some(1)) and files.read(named(2)) == {}
    assert PrefixFiles(tmp_path, LIMIT, "f" * 64).read(named(1)) is None
    assert files.bytes_read == files.bytes_written > 0 and files.damaged == 0


def test_no_flipped_byte_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = PrefixFiles(tmp_path, LIMIT, IDENTITY)
    tensors = some(3, numbers=3)
    files.write(named(1), tensors)
    path = files.path(named(1))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert files.read(named(1)) is None, f"byte {place} of {len(content)}"
        assert not path.exists(), "a damaged file is in the way of a whole one"
    assert files.damaged == len(content) == len(caplog.messages)
    assert str(path) in caplog.messages[0] and "damaged" in caplog.messages[0]
    path.write_bytes(content)
    assert same(files.read(named(1)), tensors)


@settings(max_examples=60)
@given(st.data())
def test_nothing_that_is_cut_short_or_longer_is_taken(data: st.DataObject) -> None:
    content = module._sealed(some(1, numbers=2), module._about(IDENTITY, named(1)))
    cut = content[: data.draw(st.integers(0, len(content) - 1))] + data.draw(st.binary(max_size=20))
    if cut != content:
        assert module._wrong(cut, module._about(IDENTITY, named(1))) == "is damaged"
    assert module._wrong(content, module._about(IDENTITY, named(1))) == ""


def test_foreign_files_are_left_out(tmp_path: Path) -> None:
    files = PrefixFiles(tmp_path, LIMIT, IDENTITY)
    files.write(named(1), some(1))
    for name, identity in ((named(2), IDENTITY), (named(1), IDENTITY[:16] + "f" * 48)):
        other = PrefixFiles(tmp_path, LIMIT, identity)
        other.path(name).write_bytes(files.path(named(1)).read_bytes())
        assert other.read(name) is None and other.damaged == 1
        files.write(named(1), some(1))
    save_file(some(1), files.path(named(3)))
    files.path(named(4)).write_bytes(b"")
    files.path(named(5)).mkdir()
    assert [files.read(named(number)) for number in (3, 4, 5)] == [None] * 3
    assert files.damaged == 3


def test_what_was_used_least_recently_goes(tmp_path: Path) -> None:
    size = len(module._sealed(some(0), module._about(IDENTITY, named(0))))
    files = PrefixFiles(tmp_path, 5 * size, IDENTITY)
    (tmp_path / "mine.safetensors").write_bytes(b"x" * 10 * size)
    (files.folder).mkdir()
    (files.folder / "mine.txt").write_bytes(b"x" * 10 * size)
    now = time.time()
    for number in range(5):
        files.write(named(number), some(number))
        os.utime(files.path(named(number)), (now - 100 + number, now - 100 + number))
    assert files.touch(named(0)) and not files.touch(named(77))
    files.write(named(5), some(5))
    assert [number for number in range(6) if files.has(named(number))] == [0, 2, 3, 4, 5]
    assert (tmp_path / "mine.safetensors").exists() and (files.folder / "mine.txt").exists()
    other = PrefixFiles(tmp_path, 2 * size, "e" * 64)
    other.write(named(9), some(9))
    left = [*files.folder.glob("*.tokens.*"), *other.folder.glob("*")]
    assert sum(path.stat().st_size for path in left) <= 2 * size and other.has(named(9))
    other.write(named(10), some(10, numbers=400))
    assert not other.has(named(10)) and other.has(named(9)), "what is larger than the limit is not written"


def test_what_others_write_is_seen_in_time(tmp_path: Path) -> None:
    size = len(module._sealed(some(0), module._about(IDENTITY, named(0))))
    both = [PrefixFiles(tmp_path, 100 * size, IDENTITY) for _ in range(2)]
    for number in range(300):
        both[number % 2].write(named(number), some(number))
    held = sum(path.stat().st_size for path in both[0].folder.iterdir())
    assert 50 * size < held <= 100 * size + 100 * size // module.SHARE + 2 * size


def test_two_that_share_a_directory_read_whole_files_or_none(tmp_path: Path) -> None:
    size = len(module._sealed(some(0), module._about(IDENTITY, named(0))))

    def work(seed: int) -> int:
        files, chance, hits = PrefixFiles(tmp_path, 6 * size, IDENTITY), random.Random(seed), 0
        for _ in range(150):
            number = chance.randrange(12)
            if chance.random() < 0.5:
                files.write(named(number), some(number))
            elif (found := files.read(named(number))) is not None:
                assert same(found, some(number))
                hits += 1
        assert files.damaged == 0
        return hits

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


WRITES = """
import sys, torch
from pathlib import Path
from understudy.prefixes.files import PrefixFiles
files = PrefixFiles(Path(sys.argv[1]), 1 << 30, sys.argv[2])
number = 0
while True:
    files.write(f"{number % 50:032x}.tokens", {"0 keys": torch.full((1 << 18,), float(number % 50))})
    number += 1
"""


def test_a_process_that_is_killed_leaves_whole_files(tmp_path: Path) -> None:
    writing = subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path), IDENTITY], start_new_session=True)
    files = PrefixFiles(tmp_path, 1 << 30, IDENTITY)
    deadline = time.monotonic() + 120
    while not files.has(named(7)) and time.monotonic() < deadline and writing.poll() is None:
        time.sleep(0.01)
    writing.send_signal(signal.SIGKILL)
    writing.wait()
    found = {number: files.read(named(number)) for number in range(50) if files.has(named(number))}
    assert len(found) >= 8 and files.damaged == 0
    assert all(same(tensors, {"0 keys": torch.full((1 << 18,), float(number))}) for number, tensors in found.items())
    (files.folder / f"{named(3)}.{'0' * 32}{module.UNFINISHED}").write_bytes(b"half")
    for path in files.folder.glob(f"*{module.UNFINISHED}"):
        os.utime(path, (1.0, 1.0))
    list(files._files())
    assert not list(files.folder.glob(f"*{module.UNFINISHED}")), "what a dead process left is cleared away"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = PrefixFiles(tmp_path, LIMIT, IDENTITY)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write(named(1), some(1))
    assert list(files.folder.iterdir()) == []


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"--prefix-cache .*file cannot be a directory"):
        directory_of(tmp_path / "file")
    assert directory_of(str(tmp_path / "a" / "b")).is_dir()
