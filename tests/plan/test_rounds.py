"""Expected speeds follow from what was measured, and the best shape of drafts is the best."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.plan.placement import Passes, Plan
from understudy.plan.residents import LinkSpeeds
from understudy.plan.rounds import AGREES, WIDTHS, Arithmetic, Drafting, expected, round_of

PLAN = Plan(
    budget_bytes=2 * 10**9, items={"whole weights": 0}, residents=frozenset(), whole=frozenset(), ring_bytes=10**8,
    streamed_bytes=10**9, residual_bytes=10**9, context=1024, rows=1, scratch=64, passes=Passes(2, 4), tile=32,
    draft_level_bytes=5 * 10**8, exact_bytes=2 * 10**9, layers=20, speeds=LinkSpeeds(10**9, 10**10, 8),
)  # fmt: skip
ARITHMETIC = Arithmetic(10**10, 10**-11, 10**10, 2 * 10**10, 10**-12, 0.001, 0.0003, 0.002, 0.0001, 0.01)


def test_a_round_adds_up() -> None:
    found = round_of(PLAN, ARITHMETIC, Drafting(0.9), 4)
    # four levels of 50 ms of products and 20 ms of layers
    assert found.draft_seconds == pytest.approx(4 * (0.05 + 0.02))
    # the link brings the ring while drafting, then the rest, longer than the pass computes
    assert found.pass_seconds == pytest.approx(0.9 + 0.01)
    assert found.tokens == pytest.approx(sum(0.9**depth for depth in range(5)))
    in_memory = replace(PLAN, streamed_bytes=0)
    busy = round_of(in_memory, ARITHMETIC, Drafting(0.9), 4).pass_seconds
    assert busy == pytest.approx(0.2 + 5 * 0.002 + 20 * (0.002 + 5 * 0.0001) + 0.01)
    decoded = replace(in_memory, items={"whole weights": PLAN.exact_bytes})
    assert round_of(decoded, ARITHMETIC, Drafting(0.9), 4).pass_seconds == pytest.approx(busy - 0.1)


def test_a_wider_level_and_a_wider_pass_take_longer() -> None:
    in_memory = replace(PLAN, streamed_bytes=0)
    found = round_of(in_memory, ARITHMETIC, Drafting(0.9, reach=2.0), 4, 3)
    # levels of six nodes: five more than one
    assert found.draft_seconds == pytest.approx(4 * (0.05 + 5 * 0.005 + 20 * (0.001 + 5 * 0.0003)))
    assert found.pass_seconds == pytest.approx(0.2 + 25 * 0.002 + 20 * (0.002 + 25 * 0.0001) + 0.01)
    both = round_of(replace(in_memory, rows=2), ARITHMETIC, Drafting(0.9, reach=2.0), 4, 3)
    assert both.draft_seconds == pytest.approx(4 * (0.05 + 11 * 0.005 + 20 * (0.001 + 11 * 0.0003)))


@settings(max_examples=25)
@given(st.floats(0.3, 0.99), st.integers(1, 12), st.sampled_from(WIDTHS))
def test_no_other_shape_is_faster(agrees: float, levels: int, width: int) -> None:
    best = expected(PLAN, ARITHMETIC, Drafting(agrees))
    assert best.tokens_per_second >= round_of(PLAN, ARITHMETIC, Drafting(agrees), levels, width).tokens_per_second


@settings(max_examples=25)
@given(st.floats(0.2, 0.98), st.integers(1, 20), st.sampled_from(WIDTHS), st.floats(1.0, 3.0))
def test_what_was_seen_is_explained(agrees: float, levels: int, width: int, reach: float) -> None:
    tokens = Drafting(agrees, reach).tokens(levels, width)
    found = Drafting.seen(tokens, levels, levels * reach * width, reach)
    assert found.tokens(levels, width) == pytest.approx(tokens, rel=1e-6)


def test_plain_decoding_gives_one_token_a_pass() -> None:
    plain = expected(PLAN, ARITHMETIC, None)
    assert plain.levels == 0 and plain.tokens == 1 and plain.tokens_per_second == pytest.approx(1 / 1.01)
    assert expected(PLAN, ARITHMETIC, Drafting(0.9)).tokens_per_second > 4 * plain.tokens_per_second


def test_fewer_bits_agree_less_and_a_head_reads_less() -> None:
    speeds = [Drafting.by_copy(name).tokens(8, 1) for name in ("int2", "int3", "int4", "int8", "exact")]
    assert speeds == sorted(speeds) and speeds[-1] == 9 and set(AGREES) >= {"int2", "int3", "int4", "mixed"}
    assert Drafting.by_copy("mixed:bits=3.5") == Drafting(AGREES["mixed"])
    copy, head = (round_of(PLAN, ARITHMETIC, drafting, 4) for drafting in (Drafting(0.9), Drafting(0.9, head_bytes=10**8)))
    assert head.draft_seconds == pytest.approx(4 * (0.005 + 0.001)) and head.draft_seconds < copy.draft_seconds


def test_of_another_machine_only_bandwidth_is_known() -> None:
    found = round_of(replace(PLAN, streamed_bytes=0), Arithmetic.of_bandwidth(10**10), Drafting(0.9), 4)
    assert found.draft_seconds == pytest.approx(0.2) and found.pass_seconds == pytest.approx(0.2)
