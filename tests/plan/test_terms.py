"""The parts of a plan's items add up to them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.plan.demand import Footprint, LevelSize, PlanRequest
from understudy.plan.memory import make_plan
from understudy.plan.terms import terms

NUMBERS = st.integers(0, 10**6)


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 3000), NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_they_add_up(rows: int, context: int, token: int, window: int, noise: int, levels: bool) -> None:
    footprint = Footprint(
        part_bytes=(100,) * 5, substitute_bytes=50, shared_bytes=3, kv_bytes_per_token=token, tile_bytes=7, tile_logits_bytes=11,
        choosing_bytes=13, embedding_bytes=17, kv_windows=((window, 128),), state_bytes=19, record_bytes=23,
        levels=LevelSize(node_bytes=29, noise_bytes=noise) if levels else None,
    )  # fmt: skip
    request = PlanRequest(
        budget_bytes=1 << 60, rows=rows, context=context, scratch=64, record_nodes=48, widest_level=16 if levels else 0
    )
    plan = make_plan(footprint, request)
    found = terms(plan, footprint, request)
    assert sum(found.values()) == plan.used and min(found.values()) > 0
    assert found.get("keys and values (layers that see all)", 0) == token * context * rows
    assert ("recorded graphs" in found) == levels and (found.get("noise of draft levels", 0) > 0) == (levels and noise > 0)
