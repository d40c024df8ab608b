"""Plans add up, keep what fits, and name a budget that works when one does not."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.plan.memory import MIB, PASS_TILES, TREE_TILES, Needs, Request, make_plan
from understudy.plan.residents import LinearSize
from understudy.tiers.ring import smallest_ring

SIZES = st.lists(st.integers(4096, 8 * MIB), min_size=3, max_size=60)


def needs(parts: list[int], substitute: int) -> Needs:
    linears = tuple(LinearSize(substitute // len(parts), part + substitute // len(parts), 1) for part in parts)
    held = sum(linear.substitute for linear in linears)
    return Needs(tuple(parts), held, 5 * MIB, 40_000, 8, MIB, MIB, 2 * MIB, 8 * MIB, linears=linears)


def request(budget: int, resident: str = "auto", context: int = 512) -> Request:
    return Request(budget, 1, context, 320, resident)


@given(SIZES, st.integers(0, 400 * MIB), st.integers(1, 3000), st.sampled_from(["auto", "none", "residual", "whole"]))
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
    gone = kept + sum(parts[i] for i in plan.whole)
    assert plan.streamed == sum(parts) - gone and plan.items["resident weights"] == kept
    assert plan.level == plan.items["substitute"] + plan.items["whole weights"]
    assert plan.items["substitute"] == wants.substitute - sum(wants.linears[i].substitute for i in plan.whole)
    if plan.streamed:
        assert plan.ring >= smallest_ring(parts, held=1)
    if resident == "none":
        assert not plan.residents


@given(st.integers(80, 3000), st.sampled_from([0, 1, 40, 250]), st.integers(1, 8), st.integers(64, 8192))
def test_passes_grow_with_the_budget_and_are_counted(budget: int, tree: int, rows: int, context: int) -> None:
    wants = needs([4 * MIB] * 100, 100 * MIB)
    asked = Request((budget + 900) * MIB, rows, context, 320, tree=tree)
    try:
        plan = make_plan(wants, asked)
    except UsageError:
        return
    trees, tiles = plan.passes.trees, plan.passes.tiles
    assert trees * 32 >= rows * tree and (tree or trees <= TREE_TILES)
    assert trees < tiles <= trees + max(PASS_TILES, 1)
    assert plan.items["activations"] == wants.tile_activations * tiles
    assert plan.items["logits"] == wants.logits_tile * min(tiles, trees + rows) + wants.choosing
    assert any("at a time" in note for note in plan.notes) == (plan.streamed > 0 and (tiles - trees) * 32 < context)
    more = make_plan(wants, replace(asked, budget=asked.budget + 100 * MIB)).passes
    assert more.trees >= trees and more.tiles >= tiles


def test_what_this_process_holds_more_is_said() -> None:
    wants = replace(needs([MIB] * 20, 50 * MIB), grown=200 * MIB)
    with pytest.raises(UsageError, match="200 MiB more than a fresh one: start again"):
        make_plan(wants, request(750 * MIB))
    make_plan(replace(wants, grown=0), request(750 * MIB))


def test_a_shorter_context_is_named_where_one_would_do() -> None:
    wants = needs([MIB] * 20, 50 * MIB)
    with pytest.raises(UsageError, match=r"or use --context \d+") as refusal:
        make_plan(wants, request(680 * MIB, context=4096))
    context = int(str(refusal.value).split("--context ")[1].rstrip("."))
    assert make_plan(wants, request(680 * MIB, context=context)).context == context
