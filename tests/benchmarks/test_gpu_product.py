"""The products' own benchmark: in the interpreter all launches are near torch's, and what is asked wrongly is said."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.scripts import run_benchmark

pytest.importorskip("triton")
run = partial(run_benchmark, "gpu_product.py", timeout=300)


def test_all_launches_are_right_in_each_variant(tmp_path: Path) -> None:
    words = ("--set", "WIDE_RESIDENT=8", "STAGES=2", "--form", "flat", "--form", "two:shares=4")
    done = run("--fake", "--rows", "2", *words, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["name"] for each in found["variants"]] == ["as it is", "WIDE_RESIDENT=8 STAGES=2", "flat", "two:shares=4"]
    assert not any(found["troubles"].values()) and found["variants"][1]["changes"] == {"WIDE_RESIDENT": 8, "STAGES": 2}
    assert all(0 < each["rows"]["2"]["error"] < 0.02 and each["rows"]["2"]["us"] > 0 for each in found["variants"])
    assert "| flat |" in done.stdout and "2 rows: " in done.stdout.splitlines()[-1]


def test_what_fails_is_said_and_the_rest_is_timed(tmp_path: Path) -> None:
    done = run("--fake", "--rows", "2", "--set", "STAGES=2", "MOST_JOINED=1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 1 and "WRONG  STAGES=2 MOST_JOINED=1: AssertionError" in done.stdout
    assert [each["name"] for each in json.loads((tmp_path / "found.json").read_text())["variants"]] == ["as it is"]


@pytest.mark.parametrize(
    "wrong", [["--set", "NOSUCH=1"], ["--set", "STAGES=two"], ["--form", "nosuch"], ["--hidden", "100"], ["--rows", "0"]]
)
def test_what_is_asked_wrongly_is_said(wrong: list[str]) -> None:
    done = run("--fake", *wrong)
    assert done.returncode and "gpu_product" in done.stderr and "Traceback" not in done.stderr
