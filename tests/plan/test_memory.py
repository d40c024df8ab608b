"""Plans add up, keep what fits, and name a budget that works when one does not."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.plan.demand import MIB, Footprint, PlanRequest, Spilling, SpillSizes
from understudy.plan.memory import PASS_TILES, TREE_TILES, columns_of, make_plan, roomier, smallest_budget, tree_tiles
from understudy.plan.residents import LinearSize
from understudy.tiers.ring import smallest_ring

SIZES = st.lists(st.integers(4096, 8 * MIB), min_size=3, max_size=60)


def footprint(parts: list[int], substitute: int) -> Footprint:
    linears = tuple(LinearSize(substitute // len(parts), part + substitute // len(parts), 1) for part in parts)
    return Footprint(
        part_bytes=tuple(parts),
        substitute_bytes=sum(linear.substitute_bytes for linear in linears),
        shared_bytes=5 * MIB,
        kv_bytes_per_token=40_000,
        tile_bytes=MIB,
        tile_logits_bytes=MIB,
        choosing_bytes=2 * MIB,
        embedding_bytes=8 * MIB,
        linears=linears,
    )


def request(budget: int, resident: str = "auto", context: int = 512) -> PlanRequest:
    return PlanRequest(budget_bytes=budget, rows=1, context=context, scratch=320, resident=resident)


@given(SIZES, st.integers(0, 400 * MIB), st.integers(1, 3000), st.sampled_from(["auto", "none", "residual", "whole"]))
def test_a_plan_fits_or_names_what_would(parts: list[int], substitute: int, budget: int, resident: str) -> None:
    wants = footprint(parts, substitute)
    try:
        plan = make_plan(wants, request(budget * MIB, resident))
    except UsageError as refusal:
        found = re.search(r"smallest that works here is (\d+) MiB", str(refusal))
        assert found and int(found[1]) > budget
        plan = make_plan(wants, request(int(found[1]) * MIB, resident))
    assert plan.used <= plan.budget_bytes
    kept = sum(parts[i] for i in plan.residents)
    gone = kept + sum(parts[i] for i in plan.whole)
    assert plan.streamed_bytes == sum(parts) - gone and plan.items["resident weights"] == kept
    assert plan.draft_level_bytes == plan.items["substitute"] + plan.items["whole weights"]
    assert plan.items["substitute"] == wants.substitute_bytes - sum(wants.linears[i].substitute_bytes for i in plan.whole)
    if plan.streamed_bytes:
        assert plan.ring_bytes >= smallest_ring(parts, held=1)
    if resident == "none":
        assert not plan.residents


@given(st.integers(80, 3000), st.sampled_from([0, 1, 40, 250]), st.integers(1, 8), st.integers(64, 8192))
def test_passes_grow_with_the_budget_and_are_counted(budget: int, tree: int, rows: int, context: int) -> None:
    wants = footprint([4 * MIB] * 100, 100 * MIB)
    asked = PlanRequest(budget_bytes=(budget + 900) * MIB, rows=rows, context=context, scratch=320, tree_nodes=tree)
    try:
        plan = make_plan(wants, asked)
    except UsageError:
        return
    trees, tiles = plan.passes.trees, plan.passes.tiles
    assert plan.used <= plan.budget_bytes
    assert tree <= plan.scratch <= 320 and plan.scratch == min(tree or trees * 32, 320)
    assert plan.items["KV cache"] == rows * wants.kv_bytes_per_token * columns_of(context, plan.scratch)
    assert trees * 32 >= rows * tree and (tree or trees <= TREE_TILES)
    assert trees < tiles <= trees + max(PASS_TILES, 1)
    assert plan.items["activations"] == wants.tile_bytes * tiles
    assert plan.items["logits"] == wants.tile_logits_bytes * min(tiles, trees + rows) + wants.choosing_bytes
    assert any("at a time" in note for note in plan.notes) == (plan.streamed_bytes > 0 and (tiles - trees) * 32 < context)
    more = make_plan(wants, replace(asked, budget_bytes=asked.budget_bytes + 100 * MIB)).passes
    assert more.trees >= trees and more.tiles >= tiles


def test_what_this_process_holds_more_is_said() -> None:
    wants = replace(footprint([MIB] * 20, 50 * MIB), grown_bytes=200 * MIB)
    with pytest.raises(UsageError, match="200 MiB more than a fresh one: start again"):
        make_plan(wants, request(750 * MIB))
    make_plan(replace(wants, grown_bytes=0), request(750 * MIB))


@pytest.mark.parametrize("windows", [(), ((30_000, 1024),)])
def test_a_shorter_context_is_named_where_one_would_do(windows: tuple[tuple[int, int], ...]) -> None:
    wants = replace(footprint([MIB] * 20, 50 * MIB), kv_windows=windows)
    with pytest.raises(UsageError, match=r"or use --context \d+") as refusal:
        make_plan(wants, request(680 * MIB, context=4096))
    context = int(str(refusal.value).split("--context ")[1].rstrip("."))
    assert make_plan(wants, request(680 * MIB, context=context)).context == context
    with pytest.raises(UsageError):
        make_plan(wants, request(680 * MIB, context=context + 64))


def test_trees_grow_with_the_texts_and_more_so_where_nodes_are_free() -> None:
    assert [tree_tiles(rows, free=False) for rows in (1, 2, 8)] == [4, 4, 7]
    assert [tree_tiles(rows, free=True) for rows in (1, 2, 8)] == [8, 16, 32]
    asked = PlanRequest(budget_bytes=4000 * MIB, rows=8, context=512, scratch=320)
    few = make_plan(footprint([MIB] * 20, 20 * MIB), asked).passes
    many = make_plan(footprint([MIB] * 20, 20 * MIB), replace(asked, tree_tiles=32)).passes
    assert few.trees == 4 and many.trees == 32 and many.tiles > few.tiles


@given(st.integers(0, 600), st.integers(2048, 16384))
def test_half_of_what_is_left_holds_more_tokens_where_old_ones_spill(extra: int, context: int) -> None:
    sizes = SpillSizes(token_bytes=40_000, rooms_bytes=4 * MIB, threads=1)
    wants = replace(footprint([4 * MIB] * 20, 20 * MIB), spill=sizes)
    choices = [Spilling(latest, latest + 640) for latest in range(1024, context, 256)]
    asked = replace(request(0, context=context), spilling=choices[0])
    least = smallest_budget(wants, asked)
    asked = replace(asked, budget_bytes=least + extra * MIB)
    found = roomier(wants, asked, choices)
    taken = smallest_budget(wants, found) - least
    assert 0 <= taken <= extra * MIB // 2 and make_plan(wants, found).used <= asked.budget_bytes
    more = [smallest_budget(wants, replace(asked, spilling=one)) - least for one in choices if one.latest > found.spilling.latest]
    assert not more or more[0] > extra * MIB // 2
    # What does not fit is refused as it is.
    short = replace(asked, budget_bytes=least - MIB)
    assert roomier(wants, short, choices) == short
