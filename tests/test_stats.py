"""What a pass took is shared out without a rest, and a request's figures are the sums of its shares."""

import json
from dataclasses import astuple, fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.advance import Advance
from understudy.sequence import TokenSequence
from understudy.stats import Counters, RequestMeter, Share, Stats
from understudy.tree import DraftCounts

AMOUNT = st.floats(0, 1e6)
TAKEN = st.builds(Counters, st.integers(0, 1 << 40), st.integers(0, 1 << 40), AMOUNT, AMOUNT, AMOUNT, AMOUNT)


def advance(tokens: int = 1, drafted: int = 0, accepted: int = 0, reads: bool = False, nodes: int = 1) -> Advance:
    return Advance(TokenSequence(0, [1]), [7] * tokens, drafted, accepted, reads, nodes)


ADVANCES = st.lists(st.builds(advance, reads=st.booleans(), nodes=st.integers(1, 50)), min_size=1, max_size=6)


def model(limit: float | None = None) -> Any:
    plan = SimpleNamespace(plain_tokens_per_second=limit, mixture=None, to_dict=lambda: {"rows": 2})
    return SimpleNamespace(plan=plan, device=SimpleNamespace(peak_bytes=lambda: 5000))


@given(TAKEN, ADVANCES)
def test_the_shares_of_a_pass_add_up_to_the_pass(taken: Counters, advances: list[Advance]) -> None:
    shares = Share.split(taken, advances)
    total = Share()
    for share in shares:
        total.add(share)
    drafting = any(not one.reads for one in advances)
    wanted = Share(
        taken.used, taken.read, taken.wait, taken.busy, taken.draft if drafting else 0.0, taken.verify - taken.wait
    )
    assert astuple(total) == pytest.approx(astuple(wanted), rel=1e-9, abs=1e-6)


@given(TAKEN, ADVANCES)
def test_drafting_is_shared_by_drafts_and_arithmetic_by_nodes(taken: Counters, advances: list[Advance]) -> None:
    shares = Share.split(replace(taken, wait=0.0), advances)
    nodes = sum(one.nodes for one in advances)
    drafts = sum(not one.reads for one in advances)
    for one, share in zip(advances, shares, strict=True):
        assert share.used == pytest.approx(taken.used / len(advances))
        assert share.compute == pytest.approx(taken.verify * one.nodes / nodes)
        assert share.draft == (0.0 if one.reads else pytest.approx(taken.draft / drafts))


def test_what_was_used_since_is_each_counters_difference() -> None:
    before, after = Counters(1, 2, 3.0, 4.0, 5.0, 6.0), Counters(11, 22, 33.0, 44.0, 55.0, 66.0)
    assert after.since(before) == Counters(10, 20, 30.0, 40.0, 50.0, 60.0)


def test_counters_without_a_ring_have_streamed_nothing() -> None:
    engine: Any = SimpleNamespace(clock=SimpleNamespace(draft=1.5, verify=2.5))
    supply = SimpleNamespace(bytes_used=70)
    alone: Any = SimpleNamespace(rings=[], supply=supply)
    assert Counters.of(alone, engine) == Counters(70, 0, 0.0, 0.0, 1.5, 2.5)
    ring = SimpleNamespace(stats=SimpleNamespace(bytes_read=9, wait_seconds=0.25, busy_seconds=0.5))
    streaming: Any = SimpleNamespace(rings=[ring], supply=supply)
    assert Counters.of(streaming, engine) == Counters(70, 9, 0.25, 0.5, 1.5, 2.5)
    other = SimpleNamespace(stats=SimpleNamespace(bytes_read=5, wait_seconds=0.75, busy_seconds=0.25))
    streaming.rings.append(other)
    assert Counters.of(streaming, engine) == Counters(70, 14, 0.75, 0.5, 1.5, 2.5), "links work side by side"


def test_a_request_counts_rounds_from_its_first_token_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("understudy.stats.time.perf_counter", lambda: now[0])
    meter = RequestMeter(model(limit=2.0), "substitute", 40, seed=3)
    share = Share(used=1000, read=900, wait=0.5, busy=0.25, draft=0.125, compute=0.0625)
    passes = (advance(0, reads=True), advance(1, reads=True), advance(4, 9, 3), advance(2, 8, 1))
    for second, one in enumerate(passes, 1):
        now[0] = 100.0 + second
        meter.count(one, share)
    stats = meter.stats()
    assert (stats.new_tokens, stats.rounds, stats.mean_accepted) == (7, 2, 3.0)
    assert (stats.drafted, stats.accepted) == (17, 4)
    assert (stats.ttft_seconds, stats.decode_seconds, stats.tokens_per_second) == (2.0, 2.0, 3.0)
    assert stats.bytes_streamed == 4000 and stats.stream_seconds == 1.0 and stats.link_bytes_per_second == 3600
    assert (stats.draft_seconds, stats.wait_seconds, stats.compute_seconds) == (0.25, 1.0, 0.125), "of the rounds alone"
    assert stats.limit_tokens_per_second == 6.0 and stats.peak_memory_bytes == 5000
    assert (stats.prompt_tokens, stats.seed, stats.plan) == (40, 3, {"rows": 2})


def test_levels_and_suggestions_are_those_of_all_drafts() -> None:
    meter = RequestMeter(model(), "substitute", 4)
    meter.count(advance(1, reads=True), Share())
    meter.count(replace(advance(4), counts=DraftCounts(3, 9, {"text": 4, "head": 1}, {"text": 2})), Share())
    meter.count(replace(advance(2), counts=DraftCounts(4, 12, {"head": 5}, {"head": 3})), Share())
    stats = meter.stats()
    assert stats.levels_per_round == 3.5 and stats.nodes_per_level == 3.0
    assert (stats.suggested, stats.agreed) == ({"text": 4, "head": 6}, {"text": 2, "head": 3})


def test_figures_may_be_asked_for_before_there_is_any() -> None:
    stats = RequestMeter(model(), "none", 5).stats()
    assert (stats.new_tokens, stats.rounds, stats.bytes_streamed, stats.link_bytes_per_second) == (0, 0, 0, 0.0)
    assert stats.limit_tokens_per_second is None and stats.seed is None and stats.tokens_per_second == 0


def test_the_figures_are_json_with_a_key_for_each_field() -> None:
    told = json.loads(json.dumps(RequestMeter(model(), "none", 5).stats().to_dict()))
    assert list(told) == [field.name for field in fields(Stats)]
