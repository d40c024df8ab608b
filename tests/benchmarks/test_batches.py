"""Batches of several sizes over one endless queue: the same texts, at more tokens a second by the seconds that were told."""

import json
from pathlib import Path

import pytest

import batches

COSTS = "0.02,0.002,0.2,0.006,2"


def test_rows_multiply_tokens_where_the_link_is_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    given = ["batches.py", "--rows", "1,3", "--resident", "auto", "--costs", COSTS, "--seconds", "24", "--turn", "12"]
    monkeypatch.setattr("sys.argv", [*given, "--json", str(found)])
    batches.main()
    one, three = json.loads(found.read_text())
    assert one["same"] and three["same"] and one["passes"] >= 8
    assert one["rows_per_pass"] == 1 and three["rows_per_pass"] == 3, "a free row was not taken"
    assert three["tokens_per_second"] > 1.5 * one["tokens_per_second"]
    assert all(0 < row["draft_share"] < 1 and row["pass_seconds"] >= 2 for row in (one, three))


def test_left_padded_batches_are_measured_beside_ragged_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    given = ["batches.py", "--policies", "ragged,eqspec,exspec", "--rows", "2", "--resident", "auto", "--method", "substitute"]
    monkeypatch.setattr("sys.argv", [*given, "--costs", COSTS, "--seconds", "14", "--turn", "14", "--json", str(found)])
    batches.main()
    rows = {row["variant"]: row for row in json.loads(found.read_text())}
    assert list(rows) == ["ragged 2", "eqspec 2", "exspec 2"] and all(row["same"] for row in rows.values())
    assert rows["ragged 2"]["padding_share"] == rows["ragged 2"]["realign_share"] == 0
    for name in ("eqspec 2", "exspec 2"):
        assert 0 < rows[name]["padding_share"] < 1 and 0 < rows[name]["realign_share"] < 1
