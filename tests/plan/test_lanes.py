"""Exact weights are dealt out so that streams end together; every budget holds, and nothing is lost or given twice."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.plan.demand import MIB, Footprint, PlanRequest
from understudy.plan.lanes import DeviceRoom, LaneRequest, dealt, joined, plan_lanes, shares
from understudy.plan.residents import LinearSize, LinkSpeeds

GB = 10**9
PART = 4 * MIB
# Linears of 1, 3, 4 and 8 parts of four blocks each, whose copies take half as much as their parts.
LINEARS = tuple(LinearSize(count * PART // 2, count * PART * 2, count, count * 4, count * PART // 2) for count in (1, 3, 4, 8) * 6)
WEIGHTS = sum(linear.parts for linear in LINEARS) * PART
MODEL = Footprint(
    part_bytes=(PART,) * (WEIGHTS // PART),
    substitute_bytes=WEIGHTS // 2,
    shared_bytes=MIB,
    kv_bytes_per_token=1000,
    tile_bytes=MIB,
    tile_logits_bytes=MIB,
    choosing_bytes=MIB,
    embedding_bytes=MIB,
    decoding_bytes=8 * MIB,
    linears=LINEARS,
)
ASKED = PlanRequest(
    budget_bytes=700 * MIB, rows=1, context=512, scratch=64, runtime_bytes=100 * MIB, speeds=LinkSpeeds(link_bytes_per_second=GB)
)


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 2), st.floats(0.1, 50)), min_size=2, max_size=8),
    st.integers(1, 10_000),
)
@settings(max_examples=60)
def test_streams_end_together_and_what_fits_stays(given: list[tuple[int, float, float]], total: int) -> None:
    """The first device holds the whole copy, so all can be given to it."""
    rooms = [DeviceRoom(free, beside if place else 0.0, link) for place, (free, beside, link) in enumerate(given)]
    found = shares(total, rooms)
    assert sum(found) == pytest.approx(total, rel=1e-6)
    for room, share in zip(rooms, found, strict=True):
        assert share * room.beside <= room.free + 1e-6, "what decodes parts has room"
    if sum(room.stays for room in rooms) >= total:
        assert all(share <= room.stays + 1e-6 for room, share in zip(rooms, found, strict=True))
        return
    seconds = [
        (share * (1 + room.beside) - room.free) / room.link
        for room, share in zip(rooms, found, strict=True)
        if not room.beside or share * room.beside < room.free * (1 - 1e-9)
    ]
    assert max(seconds) == pytest.approx(min(seconds), abs=1e-3 * max(1.0, max(seconds)))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
@settings(max_examples=60)
def test_each_device_gets_its_share_in_runs(parts: list[int], wanted: list[float]) -> None:
    sizes = [100 + 7 * (number % 3) for number in range(sum(parts))]
    owners = dealt(sizes, parts, wanted)
    assert len(owners) == len(sizes)
    start = 0
    for count in parts:
        mine = owners[start : start + count]
        runs = [owner for place, owner in enumerate(mine) if place == 0 or owner != mine[place - 1]]
        assert len(runs) == len(set(runs)), "a device's parts of a Linear follow one another"
        start += count
    for device, share in enumerate(wanted):
        given_bytes = sum(size for size, owner in zip(sizes, owners, strict=True) if owner == device)
        assert abs(given_bytes - share / sum(wanted) * sum(sizes)) <= 114 * len(wanted)


@pytest.mark.parametrize("resident", ["auto", "none"])
@pytest.mark.parametrize("memories", [(700, 700), (600, 250, 400), (900, 900, 900, 900)])
def test_every_part_has_one_device_and_every_budget_holds(memories: tuple[int, ...], resident: str) -> None:
    lanes = [LaneRequest(f"x:{place}", memory * MIB, 50 * MIB, GB * place) for place, memory in enumerate(memories[1:], 1)]
    plans = plan_lanes(MODEL, replace(ASKED, budget_bytes=memories[0] * MIB, resident=resident), lanes)
    owned = [plan.parts or frozenset() for plan in plans]
    assert frozenset().union(*owned) == frozenset(range(len(MODEL.part_bytes))) and sum(map(len, owned)) == len(MODEL.part_bytes)
    for plan, mine in zip(plans, owned, strict=True):
        assert plan.used <= plan.budget_bytes and plan.residents <= mine and plan.passes == plans[0].passes
        assert plan.streamed_bytes == (len(mine) - len(plan.residents)) * PART
        assert bool(plan.ring_bytes) == bool(plan.streamed_bytes)
        assert plan.items["substitute"] >= sum(PART // 2 for _ in mine) or plan is plans[0]
        assert not plan.residents or resident == "auto"
    whole = joined(plans)
    assert whole.streamed_bytes == sum(plan.streamed_bytes for plan in plans)
    if resident == "none":
        times = [plan.streamed_bytes / plan.link_bytes_per_second for plan in plans]
        added = GB * sum(max(place, 1) for place in range(len(plans)))
        assert max(times) <= min(times) + 2 * PART / GB and 0.9 * added < whole.link_bytes_per_second <= added
        assert "end together" in whole.notes[-1]
    assert len(whole.lines()) > len(plans[0].lines())
    assert [lane["device"] for lane in whole.to_dict()["lanes"]] == [lane.name for lane in lanes]
    assert "lanes" not in plans[0].to_dict()


def test_a_lane_with_too_little_memory_is_named() -> None:
    with pytest.raises(UsageError, match=r"^x:1: --memory 60 MiB is too small: the smallest that works there is \d+ MiB\.$"):
        plan_lanes(MODEL, ASKED, [LaneRequest("x:1", 60 * MIB, 50 * MIB, GB)])


def test_nothing_streams_where_all_can_stay_and_slow_drafts_are_told() -> None:
    """Parts that are dealt out whole go to nobody who has no room for them."""
    for memory in (800, 820, 850):
        lanes = [LaneRequest(f"x:{place}", memory * MIB, 50 * MIB, GB) for place in range(1, 8)]
        asked = replace(ASKED, budget_bytes=500 * MIB, speeds=replace(ASKED.speeds, draft_levels=8))
        plans = plan_lanes(MODEL, asked, lanes)
        assert all(plan.streamed_bytes == plan.ring_bytes == 0 for plan in plans)
        note = joined(plans).notes[-1]
        assert note.startswith("a draft level reads") and "--method none" in note
    assert "a draft level" not in str(joined(plan_lanes(MODEL, ASKED, lanes)).notes), "nothing drafts"
