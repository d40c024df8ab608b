"""The time to the first token is measured for each length, of texts that nothing has read before."""

import json
import sys
from pathlib import Path

import pytest
import torch

import first_token
from tests.tiny import save


def test_texts_differ_in_every_round() -> None:
    found = first_token.texts(256, [20, 7], 3)
    assert [[len(text) for text in texts] for texts in found] == [[20, 7]] * 3
    assert len({tuple(text) for texts in found for text in texts}) == 6
    assert all(100 <= token < 255 for texts in found for text in texts for token in text)


def test_both_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "model", "llama", torch.bfloat16)
    command = ["first_token", str(tmp_path / "model"), "--tokens", "40,80", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", command)
    assert first_token.main() == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["tokens"] == [40, 80] and all(second > 0 for name in ("understudy", "transformers") for second in figures[name])
    assert "| 80 | " in capsys.readouterr().out
