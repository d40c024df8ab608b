"""A batch run that is killed leaves every line with exactly one record in the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import killed
from tests.frontends.conftest import ROOT, environment, tiny  # noqa: F401


def test_a_batch_that_is_killed_goes_on(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    # What others of the suite have compiled already is there.
    own = environment(tmp_path, UNDERSTUDY_CACHE=os.environ["UNDERSTUDY_CACHE"])
    words = [sys.executable, str(ROOT / "benchmarks" / "killed.py"), str(tiny), "--kills", "3", "--lines", "40"]
    done = subprocess.run(words, capture_output=True, text=True, env=own, check=False)
    assert done.returncode == 0, done.stderr
    happened = json.loads(done.stdout)
    assert happened["kills"] >= 2 and happened["while answering"] >= 1 and happened["torn"] >= 1


def test_a_record_that_is_lost_or_doubled_is_noticed(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    record = '{"id": "1", "custom_id": "a", "response": null, "error": {"line": 1}}\n'
    output.write_text(record * 2)
    with pytest.raises(AssertionError, match="a has two records"):
        killed.texts(output)
