"""Every method gives as many tokens as were asked for, in turns, and ratios are those within a turn."""

import sys
from pathlib import Path

import pytest
import torch

import resident
from tests.tiny import save


def row(method: str, number: int, seconds: float) -> dict[str, object]:
    times = {"decode_seconds": seconds, "processor_seconds": 2 * seconds, "ttft_seconds": 1.0}
    return {"method": method, "round": number, "prompt": 0, "token_ids": [1, 2, 3], **times}


def test_a_ratio_is_the_median_of_ratios_within_turns() -> None:
    """The machine is three times slower in the second round: it disturbs both alike."""
    rows = [row("none", 0, 1.0), row("transformers", 0, 2.0), row("none", 1, 3.0), row("transformers", 1, 6.0)]
    plain, stock = resident.summary(rows)
    assert (plain["ratio"], stock["ratio"], plain["tokens_per_second"]) == (2.0, 1.0, 2.0)
    assert "| none | 2.0 |" in resident.table([plain, stock])


def test_all_methods_run_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    save(tmp_path / "model", "llama", torch.bfloat16)
    command = ["resident", str(tmp_path / "model"), "--threads", "1", "--new-tokens", "5", "--prompt-tokens", "4"]
    monkeypatch.setattr(sys, "argv", [*command, "--rounds", "2", "--prompts", "1"])
    rows = resident.measure(resident.arguments())
    assert [row["method"] for row in rows] == ["none", "substitute", "transformers"] * 2
    assert all(len(row["token_ids"]) == 5 and row["decode_seconds"] > 0 and row["ttft_seconds"] > 0 for row in rows)
    assert rows[0]["token_ids"] == rows[1]["token_ids"]
