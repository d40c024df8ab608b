"""An arena is aligned, zeroed, and gone when it is dropped."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from understudy.tiers.memory import ALIGNMENT, aligned, arena

DROPPED = """
import psutil
from understudy.tiers.memory import arena

process = psutil.Process()
before = process.memory_info().rss
view = arena(64 << 20).fill_(1)[5:]
assert process.memory_info().rss - before > 60 << 20
assert bool((view == 1).all())
del view
assert process.memory_info().rss - before < 8 << 20
"""


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 3 << 20])
def test_aligned_zeroed_and_as_long_as_asked(nbytes: int) -> None:
    memory = arena(nbytes)
    assert memory.shape == (nbytes,) and memory.dtype == torch.uint8
    assert nbytes == 0 or memory.data_ptr() % ALIGNMENT == 0
    assert not memory.any()
    memory.fill_(3)
    assert aligned(nbytes) % ALIGNMENT == 0 and 0 <= aligned(nbytes) - nbytes < ALIGNMENT


def test_dropped_memory_goes_back_to_the_system() -> None:
    # In a process of its own: threads of other tests take memory meanwhile.
    assert subprocess.run([sys.executable, "-c", DROPPED], check=False).returncode == 0


def test_untouched_memory_costs_nothing(tmp_path: Path) -> None:
    before = psutil.Process().memory_info().rss
    kept = arena(1 << 30)
    assert psutil.Process().memory_info().rss - before < 8 << 20
    assert kept.numel() == 1 << 30
