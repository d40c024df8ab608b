"""Plans add up, keep what fits, and name a budget that works when one does not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.plan.memory import MIB, Needs, Request, make_plan, spread

SIZES = st.lists(st.integers(4096, 8 * MIB), min_size=3, max_size=60)


def needs(parts: list[int], substitute: int) -> Needs:
    return Needs(tuple(parts), substitute, 5 * MIB, 40_000, 8, MIB, MIB, 2 * MIB, 8 * MIB)


def request(budget: int, resident: str = "auto", context: int = 512) -> Request:
    return Request(budget, 1, context, 320, resident)


@given(SIZES, st.integers(0, 400 * MIB), st.integers(1, 3000), st.sampled_from(["auto", "none", "residual"]))
def test_a_plan_fits_or_names_what_would(parts: list[int], substitute: int, budget: int, resident: str) -> None:
    wants = needs(parts, substitute)
    try:
        plan = make_plan(wants, request(budget * MIB, resident))
    except UsageError as refusal:
        found = re.search(r"smallest that works here is (\d+) MiB", str(refusal))
        assert found and int(found[1]) > budget
        plan = make_plan(wants, request(int(found[1]) * MIB, resident))
    assert plan.used <= plan.budget
    kept = sum(parts[i] for i in plan.residents)
    assert plan.streamed == sum(parts) - kept and plan.items["resident weights"] == kept
    if plan.streamed:
        assert plan.ring >= 3 * max(parts)
    if resident == "none":
        assert not plan.residents


@given(SIZES, st.integers(0, 100 * MIB))
def test_residents_are_spread_over_the_pass(parts: list[int], room: int) -> None:
    chosen = spread(parts, room)
    assert sum(parts[i] for i in chosen) <= room
    half = sum(parts[: len(parts) // 2])
    first = sum(parts[i] for i in chosen if i < len(parts) // 2)
    assert first <= room * half / sum(parts) + 1


def test_a_shorter_context_is_named_where_one_would_do() -> None:
    wants = needs([MIB] * 20, 50 * MIB)
    with pytest.raises(UsageError, match=r"or use --context \d+") as refusal:
        make_plan(wants, request(680 * MIB, context=4096))
    context = int(str(refusal.value).split("--context ")[1].rstrip("."))
    assert make_plan(wants, request(680 * MIB, context=context)).context == context
