"""Benchmarks as commands: run by path, in a process of their own that finds what this one finds."""

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_benchmark(name: str, *given: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """The benchmark `name` with these words, done."""
    words = [sys.executable, str(BENCHMARKS / name), *given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment)
