"""A capped command is measured and held to its limit, and leaves no cgroup behind."""

import argparse
import sys
from pathlib import Path

import pytest

import capped

needs_cgroup = pytest.mark.skipif(not capped.version(), reason="no writable memory cgroup here")


@pytest.mark.parametrize(
    ("text", "expected"), [("3.5GB", 3_500_000_000), ("512MiB", 2**29), ("1000", 1000), ("1k", 1000)]
)
def test_sizes(text: str, expected: int) -> None:
    assert capped.size(text) == expected


def test_a_wrong_size_says_how_to_write_it() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"like 3\.5GB"):
        capped.size("much")


def left_over() -> list[Path]:
    root = capped.V1 if capped.version() == 1 else capped.V2
    return list(root.glob("understudy-*"))


@pytest.mark.cgroup
@needs_cgroup
def test_peak_is_measured() -> None:
    before = left_over()
    program = "import time; held = bytearray(b'x') * 100_000_000; time.sleep(0.3); print(len(held))"
    result = capped.run([sys.executable, "-c", program], 400_000_000, cold=False)
    assert (result.returncode, result.output) == (0, "100000000\n")
    assert 100_000_000 < result.peak_bytes < 200_000_000
    assert 100_000_000 < result.peak_anonymous_bytes <= result.peak_bytes * 1.01
    assert not result.killed_for_memory
    assert left_over() == before


@pytest.mark.cgroup
@needs_cgroup
def test_too_much_is_killed() -> None:
    before = left_over()
    program = "held = bytearray(b'x') * 300_000_000"
    result = capped.run([sys.executable, "-c", program], 100_000_000, cold=False)
    assert result.returncode != 0
    assert result.killed_for_memory
    assert result.peak_bytes <= 100_000_000
    assert left_over() == before


@pytest.mark.cgroup
@needs_cgroup
def test_what_the_command_leaves_running_is_ended() -> None:
    before = left_over()
    result = capped.run(["/bin/sh", "-c", "sleep 60 & echo started"], 100_000_000, cold=False)
    assert (result.returncode, result.output) == (0, "started\n")
    assert left_over() == before
