"""A plan adds up, says what it says under the keys that scripts rely on, and predicts what its speeds allow."""

import json
from dataclasses import replace

import pytest

from understudy.plan.placement import Passes, Plan
from understudy.plan.residents import LinkSpeeds

SPEEDS = LinkSpeeds(link_bytes_per_second=100.0, memory_bytes_per_second=1000.0, draft_levels=8)
PLAN = Plan(
    budget_bytes=2000,
    items={"substitute": 300, "ring": 90, "decoding": 0},
    residents=frozenset({1, 4}),
    whole=frozenset({2}),
    ring_bytes=90,
    streamed_bytes=500,
    residual_bytes=800,
    context=64,
    rows=2,
    scratch=64,
    passes=Passes(trees=1, tiles=3),
    tile=32,
    draft_level_bytes=300,
    exact_bytes=1000,
    speeds=SPEEDS,
    link_bytes_per_second=100.0,
    method="ngram",
    notes=("first",),
)


def test_a_plan_is_json_under_the_same_keys_as_ever() -> None:
    assert json.loads(json.dumps(PLAN.to_dict())) == {
        "budget": 2000,
        "items": {"substitute": 300, "ring": 90, "decoding": 0},
        "residents": 2,
        "ring": 90,
        "streamed": 500,
        "total": 800,
        "context": 64,
        "rows": 2,
        "passes": {"trees": 1, "tiles": 3},
        "tile": 32,
        "device": "cpu",
        "method": "ngram",
        "link_bytes_per_second": 100.0,
        "whole": 1,
        "decoded": 0,
        "level": 300,
        "exact": 1000,
        "speeds": {"link": 100.0, "memory": 1000.0, "levels": 8},
        "host_memory": 0,
        "notes": ["first"],
        "used": 390,
        "smallest_budget": 0,
        "limit_plain_tokens_per_second": 0.2,
    }


def test_lines_say_what_is_there_and_leave_out_what_takes_nothing() -> None:
    lines = PLAN.lines()
    assert not any(line.startswith("decoding") for line in lines) and lines[-1] == "first"
    assert "kept in fast memory: 2 residual parts beside the substitute, 1 Linears whole, for draft and target" in lines
    assert "streamed per pass: 500 B of 800 B exact weights (62%)" in lines
    assert any(line.startswith("with 8 tokens per pass from drafts of 8 levels: about ") for line in lines)
    silent = replace(PLAN, residents=frozenset(), whole=frozenset(), streamed_bytes=0, speeds=LinkSpeeds()).lines()
    assert not any(words in line for line in silent for words in ("kept in fast", "plain offloading", "at most"))


def test_notes_are_added_in_order_and_empty_ones_left_out() -> None:
    assert PLAN.noted("second", "", "third").notes == ("first", "second", "third")
    assert PLAN.notes == ("first",)


def test_what_is_predicted_is_a_round_of_drafting_and_reading() -> None:
    """Four levels of 300 bytes take 1.2 s, in which the ring takes in 90 bytes; the other 410 take 4.1 s."""
    assert PLAN.predicted(tokens=5, levels=4) == pytest.approx(5 / (1.2 + 4.1))
    unread = replace(PLAN, speeds=replace(SPEEDS, draft_levels=0))
    assert unread.predicted(tokens=1, levels=4) == pytest.approx(1 / 5.0), "nothing reads the substitute"
    assert replace(PLAN, speeds=LinkSpeeds()).predicted(5, 4) is None
    assert replace(PLAN, streamed_bytes=0).plain_tokens_per_second is None
