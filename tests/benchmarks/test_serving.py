"""The server beside the engine alone, in turns: what the event loop takes is told, and how late each piece of text is."""

import json
from pathlib import Path

import pytest
import torch

import serving
from tests.tiny import save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served")
    save(directory, "llama-tied", torch.bfloat16, max_position_embeddings=1024)
    return directory


def test_both_ways_take_their_turns_and_the_event_loop_has_its_share(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    given = ["serving.py", str(model), "--tokens", "12", "--turns", "1", "--clients", "2", "--json", str(found)]
    monkeypatch.setattr("sys.argv", [*given, "--method", "substitute:width=2,depth=4"])
    serving.main()
    (figures,) = json.loads(found.read_text())
    ((server,), (engine,)) = figures["server"], figures["engine"]
    assert server["tokens"] == engine["tokens"] == 2 * 12
    assert server["passes"] > 1 and engine["passes"] > 1
    assert 0 < server["loop"] < server["cpu"] and engine["loop"] == 0 < engine["cpu"]
    # Each pass gives each text a piece at most, and none is there before its pass is over.
    assert 2 <= len(figures["late"]) <= 2 * server["passes"] and min(figures["late"]) > 0
    head, line, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == line.count("|") == row.count("|") and row.startswith("| 2 |")
