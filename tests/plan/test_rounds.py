"""Expected speeds follow from what was measured, and the best shape of drafts is the best."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.plan.drafts import WIDTHS, Drafting, DraftShape, SeenDrafts
from understudy.plan.placement import Passes, Plan
from understudy.plan.residents import LinkSpeeds
from understudy.plan.rounds import Arithmetic, expected, round_of

PLAN = Plan(
    budget_bytes=2 * 10**9, items={"whole weights": 0}, residents=frozenset(), whole=frozenset(), ring_bytes=10**8,
    streamed_bytes=10**9, residual_bytes=10**9, context=1024, rows=1, scratch=64, passes=Passes(2, 4), tile=32,
    draft_level_bytes=5 * 10**8, exact_bytes=2 * 10**9, layers=20, speeds=LinkSpeeds(10**9, 10**10, 8),
)  # fmt: skip
ARITHMETIC = Arithmetic(
    copy_rate=10**10, copy_node_seconds=10**-11, rebuilt_rate=10**10, plain_rate=2 * 10**10, node_seconds=10**-12,
    level_layer=0.001, level_node=0.0003, level_rest=0.002, pass_layer=0.002, pass_node=0.0001, pass_tile=0.0005,
    part_seconds=0.0002, round_rest=0.01, head_level=0.007,
)  # fmt: skip
DRAFTING = Drafting(0.9)


def test_a_round_adds_up() -> None:
    found = round_of(PLAN, ARITHMETIC, DRAFTING.shape(4))
    # four levels of 50 ms of products, 20 ms of layers, and what is beside them
    assert found.draft_seconds == pytest.approx(4 * (0.05 + 0.02 + 0.002))
    # the link brings the ring while drafting, then the rest, longer than the pass computes
    assert found.pass_seconds == pytest.approx(0.9 + 0.01)
    assert found.shape.tokens == pytest.approx(sum(0.9**depth for depth in range(5)))
    in_memory = replace(PLAN, streamed_bytes=0)
    busy = round_of(in_memory, ARITHMETIC, DRAFTING.shape(4)).pass_seconds
    assert busy == pytest.approx(0.2 + 4 * 0.002 + 20 * (0.002 + 4 * 0.0001) + 0.01)
    decoded = replace(in_memory, items={"whole weights": PLAN.exact_bytes})
    assert round_of(decoded, ARITHMETIC, DRAFTING.shape(4)).pass_seconds == pytest.approx(busy - 0.1)
    streamed = replace(PLAN, streamed_bytes=1, streamed_parts=50)
    assert round_of(streamed, ARITHMETIC, DRAFTING.shape(4)).pass_seconds == pytest.approx(busy + 50 * 0.0002)


def test_a_wider_level_and_a_wider_pass_take_longer() -> None:
    in_memory = replace(PLAN, streamed_bytes=0)
    found = round_of(in_memory, ARITHMETIC, DraftShape(levels=4, level_nodes=6, nodes=24, tokens=5))
    # levels of six nodes: five more than one
    assert found.draft_seconds == pytest.approx(4 * (0.05 + 5 * 0.005 + 20 * (0.001 + 5 * 0.0003) + 0.002))
    assert found.pass_seconds == pytest.approx(0.2 + 24 * 0.002 + 20 * (0.002 + 24 * 0.0001) + 0.01)
    both = round_of(replace(in_memory, rows=2), ARITHMETIC, DraftShape(4, 6, 24, 5))
    assert both.draft_seconds == pytest.approx(4 * (0.05 + 11 * 0.005 + 20 * (0.001 + 11 * 0.0003) + 0.002))
    # fifty nodes are two tiles
    assert both.pass_seconds == pytest.approx(0.2 + 49 * 0.002 + 20 * (0.002 + 49 * 0.0001 + 0.0005) + 0.01)
    assert both.text_tokens_per_second * 2 == both.tokens_per_second
    told = both.to_dict()
    assert (told["levels"], told["tokens"], told["nodes"], told["rows"]) == (4, 5, 24, 2)
    assert told["pass_seconds"] == both.pass_seconds and told["draft_seconds"] == both.draft_seconds


@settings(max_examples=25)
@given(st.floats(0.3, 0.99), st.integers(1, 12), st.sampled_from(WIDTHS))
def test_no_other_shape_is_faster(agrees: float, levels: int, width: int) -> None:
    drafting = Drafting(agrees)
    best = expected(PLAN, ARITHMETIC, drafting)
    assert best.tokens_per_second >= round_of(PLAN, ARITHMETIC, drafting.shape(levels, width)).tokens_per_second


def test_plain_decoding_gives_one_token_a_pass() -> None:
    plain = expected(PLAN, ARITHMETIC, None)
    assert plain.shape.levels == 0 and plain.shape.tokens == 1 and plain.tokens_per_second == pytest.approx(1 / 1.01)
    assert expected(PLAN, ARITHMETIC, DRAFTING).tokens_per_second > 4 * plain.tokens_per_second


def test_a_slow_link_asks_for_longer_drafts_of_those_that_were_seen() -> None:
    drafts = SeenDrafts.of([DraftShape(4, 1, 4, 4), DraftShape(20, 1, 20, 9)])
    quick = expected(replace(PLAN, streamed_bytes=0), ARITHMETIC, drafts)
    slow = expected(replace(PLAN, speeds=LinkSpeeds(10**8, 10**10, 8)), ARITHMETIC, drafts)
    assert 0 < quick.shape.levels <= 4 and slow.shape.levels == 20


def test_a_head_reads_less_than_a_copy() -> None:
    assert round_of(PLAN, ARITHMETIC, DRAFTING.shape(4), 10**8).draft_seconds == pytest.approx(4 * (0.005 + 0.007))
    wide = round_of(PLAN, ARITHMETIC, DRAFTING.shape(4, 3), 10**8)
    assert wide.draft_seconds == pytest.approx(4 * (0.005 + 0.007 + 2 * (0.0001 + 0.0003)))
    copy, head = (expected(PLAN, ARITHMETIC, drafting) for drafting in (DRAFTING, Drafting(0.9, head_bytes=10**8)))
    assert head.tokens_per_second > copy.tokens_per_second


def test_of_another_machine_only_bandwidth_is_known() -> None:
    found = round_of(replace(PLAN, streamed_bytes=0), Arithmetic.of_bandwidth(10**10), DRAFTING.shape(4))
    assert found.draft_seconds == pytest.approx(0.2) and found.pass_seconds == pytest.approx(0.2)
