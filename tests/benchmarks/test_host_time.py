"""What the host does in a round is measured where nothing else is done: levels, passes and copies are asked for."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.scripts import run_benchmark

pytest.importorskip("triton")
run = partial(run_benchmark, "host_time.py", timeout=600)


def test_rounds_are_launched_and_their_functions_named(tmp_path: Path) -> None:
    done = run("--rows", "2", "--rounds", "3", "--profile", "5", "--json", str(tmp_path / "host.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "host.json").read_text())["2"]
    assert found["rounds"] == 3 and found["nodes"] == 2 * 65 and found["ms"] >= found["pass_ms"] > 0 and found["cpu_ms"] > 0
    assert found["launches"]["levels"] == 8 and found["launches"]["copies"] > 100 and found["launches"]["kernels"] > 200
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 rows, 130 nodes: ") and len(lines) == 6 and all(" ms " in line for line in lines)


@pytest.mark.parametrize("wrong", [["--rows", "0"], ["--rounds", "1000"], ["--codec", "nosuch"]])
def test_what_is_asked_wrongly_is_said(wrong: list[str]) -> None:
    done = run(*wrong)
    assert done.returncode and "host_time.py: error" in done.stderr and "Traceback" not in done.stderr
