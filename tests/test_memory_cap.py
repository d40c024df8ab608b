"""`--memory` is a ceiling the kernel agrees with: a whole run in a cgroup of that size."""

import json
import os
import sys
from pathlib import Path

import pytest
from benchmarks.capped import run, version

BUDGET = 900 << 20


@pytest.mark.cgroup
@pytest.mark.skipif(version() == 0, reason="no right to make a memory cgroup here")
def test_a_run_stays_under_its_cap(checkpoint: Path) -> None:
    command = [
        sys.executable, "-m", "understudy", "run", str(checkpoint), "for node in tree:", "--json", "--quiet", "--resident", "none",
        "--memory", str(BUDGET), "--context", "256", "--max-new-tokens", "32", "--ignore-eos",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    capped = run(command, BUDGET, environment=environment, cold=False, timeout=200)
    assert capped.returncode == 0 and not capped.killed_for_memory
    stats = json.loads(capped.output)["stats"]
    assert stats["bytes_streamed"] > 0 and stats["accepted"] > 0
    assert stats["peak_memory_bytes"] <= BUDGET
    assert stats["plan"]["used"] <= BUDGET
    assert capped.peak_anonymous_bytes <= stats["peak_memory_bytes"] * 1.05
