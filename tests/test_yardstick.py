"""Arithmetic is measured once for each machine, and what cannot be read is measured again."""

import json
from pathlib import Path

import pytest

from understudy import yardstick
from understudy.plan.rounds import Arithmetic

FOUND = Arithmetic(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(yardstick, "measure", lambda: taken.append(1) or FOUND)
    assert yardstick.measured(tmp_path) == yardstick.measured(tmp_path) == FOUND and len(taken) == 1
    assert yardstick.measured(tmp_path, again=True) == FOUND and len(taken) == 2
    for damaged in ("{", "[]", json.dumps({"x": {"copy_rate": 1}})):
        (tmp_path / yardstick.FILE).write_text(damaged)
        assert yardstick.measured(tmp_path) == FOUND
    assert len(taken) == 5


def test_the_built_in_model_tells_what_a_layer_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    monkeypatch.setattr(yardstick, "SAMPLE", (256, 256))
    monkeypatch.setattr(yardstick, "TOKENS", 8)
    found = yardstick.measure()
    assert min(found.copy_rate, found.rebuilt_rate, found.plain_rate) > 1e6
    assert found.level_layer > 0 and found.pass_layer > 0 and found.node_seconds >= 0 and found.round_rest >= 0
