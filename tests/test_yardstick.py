"""Arithmetic is measured once for each machine, and what cannot be read is measured again."""

import json
from pathlib import Path

import pytest

from understudy import yardstick
from understudy.plan.rounds import Arithmetic

FOUND = Arithmetic(*map(float, range(1, 11)))


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
    assert found.level_layer > 0 and found.pass_layer > 0 and found.round_rest >= 0
    assert min(found.node_seconds, found.copy_node_seconds, found.level_node, found.pass_node) >= 0


def test_what_a_node_takes_is_told_from_what_a_layer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # levels of 1 and of 4 nodes, passes of 7 and of 25
    seen = {
        1: {"level": (1.0, 0.5), "pass": (7.0, 1.07), "rest": (7.0, 3.0)},
        4: {"level": (4.0, 0.8), "pass": (25.0, 1.25), "rest": (25.0, 9.0)},
    }
    monkeypatch.setattr(yardstick, "_round", lambda products, width: seen[width])
    found = yardstick._beside(Arithmetic.of_bandwidth(1e9))
    wanted = {"level_layer": 0.5, "level_node": 0.1, "pass_layer": 1.0, "pass_node": 0.01, "round_rest": 3.0}
    assert found == pytest.approx(wanted)
