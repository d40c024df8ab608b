"""Layers are cut so that the longest stage takes as little as can be; every budget holds, and nothing is lost or given twice."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.test_lanes import ASKED, GB, LINEARS, MODEL, PART
from understudy.errors import UsageError
from understudy.plan.demand import MIB, LayerSize, LevelSize
from understudy.plan.lanes import LaneRequest, asked_of, plan_lanes
from understudy.plan.memory import smallest_passes
from understudy.plan.splits import joined_stages
from understudy.plan.stages import cut, plan_stages, stage_seconds

# Six layers of four Linears; the last of all is the head.
LAYERED = replace(
    MODEL,
    linears=tuple(replace(one, layer=place // 4 if place < len(LINEARS) - 1 else -1) for place, one in enumerate(LINEARS)),
    layers=tuple(LayerSize(token_bytes=160, reads=layer) for layer in range(6)),
    kv_bytes_per_token=960,
    state_line=4096,
)


def lanes(*memories: int, link: float = GB) -> list[LaneRequest]:
    return [LaneRequest(f"x:{place}", memory * MIB, 50 * MIB, link) for place, memory in enumerate(memories, 1)]


@pytest.mark.parametrize("resident", ["auto", "none"])
@pytest.mark.parametrize("memories", [(900, 900), (500, 350, 400), (900, 900, 900, 900)])
def test_every_part_has_one_stage_and_every_budget_holds(memories: tuple[int, ...], resident: str) -> None:
    asked = replace(ASKED, budget_bytes=memories[0] * MIB, resident=resident)
    plans = plan_stages(LAYERED, asked, lanes(*memories[1:]))
    owned = [plan.parts or frozenset() for plan in plans]
    assert frozenset().union(*owned) == frozenset(range(len(LAYERED.part_bytes)))
    assert sum(map(len, owned)) == len(LAYERED.part_bytes)
    edges = [plan.stage for plan in plans]
    assert edges[0][0] == 0 and edges[-1][1] == 6 and all(one[1] == two[0] for one, two in pairwise(edges))
    for plan, mine in zip(plans, owned, strict=True):
        assert plan.used <= plan.budget_bytes and plan.residents <= mine and plan.passes == plans[0].passes
        assert plan.split == "stages" and plan.streamed_bytes == (len(mine) - len(plan.residents)) * PART
        layers = plan.stage[1] - plan.stage[0]
        assert plan.items["KV cache"] == 160 * layers * (512 + 64) * asked.rows, "keys and values of its own layers"
        assert plan.items["substitute"] == sum(LAYERED.linears[index].substitute_bytes for index in plan.linears or ())
    assert len(LINEARS) - 1 in (plans[0].linears or ()) and plans[0].items["logits"] > 0 and plans[1].items["logits"] == 0
    whole = joined_stages(plans)
    assert whole.exact_bytes == LAYERED.exact_bytes and whole.streamed_bytes == sum(plan.streamed_bytes for plan in plans)
    assert "in stages (cpu 0 to" in str(whole.notes)


def test_two_devices_hold_what_one_alone_cannot() -> None:
    """Neither the copy nor the KV cache must fit on the first."""
    asked = replace(ASKED, budget_bytes=290 * MIB)
    assert sum(plan.streamed_bytes for plan in plan_stages(LAYERED, asked, lanes(300, 300))) > 0
    with pytest.raises(UsageError, match="too small"):
        plan_lanes(LAYERED, asked, lanes(300, 300))


@given(st.lists(st.integers(200, 900), min_size=2, max_size=4), st.integers(1, 20))
@settings(max_examples=30)
def test_no_other_cut_has_a_shorter_longest_stage(memories: list[int], link: int) -> None:
    asked = replace(ASKED, budget_bytes=memories[0] * MIB, resident="residual")
    requests = [asked, *(asked_of(asked, lane) for lane in lanes(*memories[1:], link=link * GB / 4))]
    passes = smallest_passes(asked)
    costs = [stage_seconds(LAYERED, one, passes, front=place == 0) for place, one in enumerate(requests)]
    found = cut(LAYERED, requests, passes)

    def longest(edges: list[tuple[int, int]]) -> float:
        return max(cost(*edge) for cost, edge in zip(costs, edges, strict=True))

    for inner in combinations(range(1, 6), len(memories) - 1):
        starts = [0, *inner]
        assert longest(found) <= longest(list(zip(starts, [*inner, 6], strict=True)))


def test_what_stages_cannot_be_is_said() -> None:
    with pytest.raises(UsageError, match=r"^--split stages: 6 decoder layers are too few for 7 devices\.$"):
        plan_stages(LAYERED, ASKED, lanes(*[900] * 6))
    with pytest.raises(UsageError, match=r"^x:1: --memory 60 MiB is too small: the smallest that works there is \d+ MiB\.$"):
        plan_stages(LAYERED, ASKED, lanes(60))
    reading = replace(LAYERED, layers=tuple(LayerSize(160, reads=0 if layer == 5 else layer) for layer in range(6)))
    with pytest.raises(UsageError, match=r"they make 1 stages at most"):
        plan_stages(reading, ASKED, lanes(900))


DRAFTING = replace(LAYERED, levels=LevelSize(node_bytes=MIB // 4, noise_bytes=MIB // 8))


@pytest.mark.parametrize(
    ("devices", "rows", "level", "groups"), [(2, 8, 32, 2), (6, 8, 32, 4), (6, 3, 32, 3), (6, 8, 0, 6), (3, 1, 8, 1)]
)
def test_groups_are_planned_for_where_the_copy_drafts(devices: int, rows: int, level: int, groups: int) -> None:
    """On devices with memory of their own (which have levels) four at most; what their searches take is the first one's."""
    asked = replace(ASKED, budget_bytes=900 * MIB, rows=rows, widest_level=level, apart=True)
    plans = plan_stages(DRAFTING, asked, lanes(*[900] * (devices - 1)))
    assert [plan.groups for plan in plans] == [groups] * devices
    assert plans[0].items["draft levels"] == (DRAFTING.levels.total(level, rows, groups) if level and DRAFTING.levels else 0)
    told = f"texts go through the stages in up to {groups} groups side by side, where that is faster"
    assert (told in joined_stages(plans).notes) == (groups > 1)
    others = plan_stages(DRAFTING, replace(asked, apart=False), lanes(*[900] * (devices - 1)))
    assert {plan.groups for plan in others} == {1}


def test_groups_are_left_out_before_weights_stream_or_nothing_fits() -> None:
    asked = replace(ASKED, rows=4, widest_level=64, apart=True)

    def planned(memory: int) -> list[tuple[int, bool]]:
        plans = plan_stages(DRAFTING, replace(asked, budget_bytes=memory * MIB), lanes(memory))
        assert all(plan.used <= plan.budget_bytes for plan in plans)
        return [(plan.groups, plan.streamed_bytes > 0) for plan in plans]

    found = {memory: planned(memory) for memory in range(320, 700, 10)}
    assert all(len({groups for groups, _ in each}) == 1 for each in found.values())
    kinds = list(dict.fromkeys((each[0][0], any(streams for _, streams in each)) for each in found.values()))
    assert kinds == [(1, True), (1, False), (2, False)]
