"""By blocks or in stages: the faster way by what links and devices were measured to do, with the reason in one line."""

from dataclasses import replace
from functools import partial

import pytest

from tests.plan.test_lanes import ASKED, GB
from tests.plan.test_stages import LAYERED, lanes
from understudy.errors import UsageError
from understudy.plan.demand import MIB
from understudy.plan.lanes import plan_lanes
from understudy.plan.splits import Hop, PassShape, chosen, joined_stages, pass_seconds
from understudy.plan.stages import plan_stages

SHAPE = PassShape(nodes=2, line=4096, linears=24)
FAST, SLOW = Hop(1e-6, 100 * GB, 1000 * GB), Hop(5e-3, GB, 1000 * GB)


def ways(memory: int, other: int, **asked: object) -> dict[str, object]:
    request = replace(ASKED, budget_bytes=memory * MIB, **asked)  # type: ignore[arg-type]
    return {name: partial(plan, LAYERED, request, lanes(other)) for name, plan in (("blocks", plan_lanes), ("stages", plan_stages))}


def test_fast_hops_are_for_blocks_and_slow_ones_for_stages() -> None:
    both = ways(900, 900)
    plans, why = chosen("auto", both, SHAPE, FAST)  # type: ignore[arg-type]
    assert plans[0].split == "blocks"
    assert why.startswith("by blocks of outputs: a pass of 2 nodes should take") and "in stages of layers" in why and "1 us" in why
    plans, why = chosen("auto", both, SHAPE, SLOW)  # type: ignore[arg-type]
    assert plans[0].split == "stages" and why.startswith("in stages of layers: a pass of 2 nodes should take")
    plans, why = chosen("auto", both, replace(SHAPE, recorded=True), SLOW)  # type: ignore[arg-type]
    assert plans[0].split == "blocks" and "recorded graphs, which stay on one device" in why
    plans, why = chosen("blocks", both, SHAPE, SLOW)  # type: ignore[arg-type]
    assert plans[0].split == "blocks" and "as --split says" in why


def test_links_add_up_by_blocks_alone() -> None:
    """Where everything streams, the other links stand still in a stage once their rings are full."""
    stages = ways(300, 220)["stages"]()  # type: ignore[operator]
    whole = joined_stages(stages)
    assert all(plan.streamed_bytes > plan.ring_bytes > 0 for plan in stages)
    assert GB < whole.link_bytes_per_second < 1.5 * GB
    assert pass_seconds(stages, SHAPE, FAST) == pytest.approx(whole.streamed_bytes / whole.link_bytes_per_second, rel=0.05)


def test_what_fits_one_way_alone_is_taken_and_said() -> None:
    small = ways(290, 400)
    plans, why = chosen("auto", small, SHAPE, FAST)  # type: ignore[arg-type]
    assert plans[0].split == "stages" and "by blocks of outputs it does not fit (--memory 290 MiB is too small" in why
    with pytest.raises(UsageError, match="too small"):
        chosen("blocks", small, SHAPE, FAST)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="too small"):
        chosen("auto", ways(120, 90), SHAPE, FAST)  # type: ignore[arg-type]
