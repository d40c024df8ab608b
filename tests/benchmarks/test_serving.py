"""The server beside the engine alone: both run the same passes, and every piece of text is seen at the client."""

import json
from pathlib import Path

import pytest
import torch

import serving
from tests.tiny import save

TURNS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served")
    save(directory, "llama-tied", torch.bfloat16, max_position_embeddings=1024)
    return directory


def test_both_ways_run_the_same_passes_and_the_event_loop_has_its_share(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    given = ["serving.py", str(model), "--tokens", "24", "--turns", str(TURNS), "--clients", "1,2"]
    monkeypatch.setattr("sys.argv", [*given, "--method", "substitute:width=2,depth=4", "--json", str(found)])
    serving.main()
    one, two = json.loads(found.read_text())
    assert [figures["clients"] for figures in (one, two)] == [1, 2]
    for server, engine in zip(one["server"], one["engine"], strict=True):
        assert server["passes"] == engine["passes"] > 1, "the ways ran different trees"
        assert 0 < server["loop"] < server["cpu"] and engine["loop"] == 0 < engine["cpu"]
    # Each pass that gave tokens gave a piece, and none arrived before its pass was over.
    assert len(one["late"]) == sum(turn["passes"] for turn in one["server"]) and min(one["late"]) > 0
    assert len(two["server"]) == len(two["engine"]) == TURNS
    assert all(turn["tokens"] == 2 * 24 for turn in (*two["server"], *two["engine"]))
    assert len(capsys.readouterr().out.splitlines()) == 4
