"""Random numbers are the same in every process, in one that imported as little as a command does too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import save
from understudy.seeds import seeded

LEAN = """
from understudy import startup
startup.own()
with startup.lean():
    import torch
from understudy.seeds import seeded
print(torch.randn(3, generator=seeded(7)).tolist())
"""


def test_a_seed_gives_the_same_numbers_in_a_lean_process() -> None:
    here = torch.randn(3, generator=seeded(7))
    assert torch.equal(here, torch.randn(3, generator=torch.Generator().manual_seed(7)))
    lean = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    assert lean.stdout.strip() == str(here.tolist())


@pytest.mark.parametrize("codec", ["raw", "delta"])
def test_a_command_prepares_a_model_whose_kind_it_knows(codec: str, tmp_path: Path) -> None:
    """Nothing is proven nor traced then, which imports much of torch."""
    save(tmp_path / "model", dtype=torch.bfloat16)
    environment = {**os.environ, "UNDERSTUDY_CACHE": str(tmp_path / "cache")}
    for output in ("first", "second"):
        words = ["prepare", str(tmp_path / "model"), "--output", str(tmp_path / output), "--codec", codec]
        done = subprocess.run([sys.executable, "-m", "understudy", *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    files = [sorted((tmp_path / output).glob("*.bin")) for output in ("first", "second")]
    assert len(files[0]) == 3 and [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert len(list((tmp_path / "cache/traces").iterdir())) == 1
