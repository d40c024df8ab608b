"""Turns with a grammar and without write the same tokens, and the ratio is that within a turn."""

import sys
from typing import Any

import pytest
import torch

import grammar


def run(seconds: float, tokens: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    found = {"token_ids": [*tokens], "decode_seconds": seconds, "tokens_per_pass": 1.5}
    return found | {"passes": 2, "grammar_seconds": seconds / 50, "places": 4}


def row(form: str, free: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    return {"form": form, "round": 0, "prompt": 0, "free": free, "held": held}


def test_a_ratio_is_the_median_of_ratios_within_turns() -> None:
    """The machine is three times slower in the second turn: it disturbs both alike."""
    rows = [row("any", run(1.0), run(1.25)), row("any", run(3.0), run(3.75)), row("schema", run(1.0), run(2.0, (7, 8)))]
    found, other = grammar.summary(rows)
    assert found["ratio"] == pytest.approx(0.8) and found["paired"] and found["share"] == pytest.approx(0.02)
    assert not other["paired"] and "other tokens" in grammar.table([found, other])
    assert "ABOVE 5%: any costs most, 20.0%" in grammar.verdict([found, other])
    assert grammar.verdict([other]) == "within 5%: schema costs most, 2.0% of tokens/s"


def test_both_write_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    command = ["grammar", "demo", "--prompts", "2", "--rounds", "2", "--new-tokens", "24", "--prompt-tokens", "32"]
    monkeypatch.setattr(sys, "argv", [*command, "--context", "128", "--resident", "none"])
    rows = grammar.measure(grammar.arguments())
    assert [row["form"] for row in rows] == ["any", "words", "tools", "schema"] * 4
    for one in rows:
        free, held = one["free"], one["held"]
        assert free["places"] == 0 == free["grammar_seconds"] and held["decode_seconds"] > held["grammar_seconds"] > 0
        assert held["places"] >= len(held["token_ids"]), "it is asked about each token at least"
        assert (held["token_ids"] == free["token_ids"]) == (one["form"] != "schema")
        assert len(free["token_ids"]) == 24 and free["tokens_per_pass"] > 1
    assert len(grammar.table(grammar.summary(rows)).splitlines()) == 6
