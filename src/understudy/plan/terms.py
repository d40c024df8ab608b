"""The items of a plan taken apart, as people ask for them: keys and values by kind of layer, scratch of trees, noise, graphs."""

from __future__ import annotations

from .demand import Footprint, LevelSize, PlanRequest
from .memory import columns_of
from .placement import Plan


def terms(plan: Plan, footprint: Footprint, request: PlanRequest) -> dict[str, int]:
    """Bytes of fast memory by name. They add up to `plan.used`: each item of the plan, or its parts in its place."""
    apart = {"KV cache": _cache(plan, footprint, request), "logits": _logits(plan, footprint)}
    if footprint.levels is not None and request.widest_level:
        apart["draft levels"] = _levels(footprint.levels, request, plan.groups)
    found: dict[str, int] = {}
    for name, nbytes in plan.items.items():
        parts = apart.get(name) if nbytes else None
        found |= parts or {name: nbytes}
    assert sum(found.values()) == plan.used, f"terms add up to {sum(found.values())} bytes, the plan to {plan.used}"
    return {name: nbytes for name, nbytes in found.items() if nbytes}


def _cache(plan: Plan, footprint: Footprint, request: PlanRequest) -> dict[str, int]:
    """Of all rows: what the conversation fills, and what trees need beside it."""
    columns = columns_of(request.context, plan.scratch)
    held = footprint.cache_bytes(columns, 0, request.spilling if plan.spill_latest else None) - footprint.cache_bytes(0, 0)
    windows = sum(token_bytes * min(columns, most) for token_bytes, most in footprint.kv_windows)
    records = footprint.record_bytes * request.record_nodes
    scratch = footprint.kv_bytes_per_token * (columns - request.context)
    each = {
        "keys and values (layers that see all)": held - windows - scratch,
        "keys and values (sliding windows)": windows,
        "states of recurrent layers and what keys are compressed of": footprint.state_bytes,
        "scratch of trees": scratch + records,
    }
    return {name: nbytes * request.rows for name, nbytes in each.items()}


def _logits(plan: Plan, footprint: Footprint) -> dict[str, int]:
    return {
        "logits": footprint.tile_logits_bytes * plan.passes.heads(plan.rows),
        "noise and choosing of tokens": footprint.choosing_bytes,
    }


def _levels(levels: LevelSize, request: PlanRequest, groups: int) -> dict[str, int]:
    noise = levels.noise(request.widest_level)
    whole = levels.total(request.widest_level, request.rows, groups)
    return {
        "draft levels": whole - noise - levels.recorded_bytes,
        "noise of draft levels": noise,
        "recorded graphs": levels.recorded_bytes,
    }
