"""Where every byte goes, added up before anything is loaded. `--memory` is a ceiling: a plan that does not fit is refused,
with the smallest budget that would do."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from ..errors import UsageError
from ..small_keys import NOT_EXACT
from ..tiers.ring import smallest_ring
from .demand import MIB, Footprint, PlanRequest, Spilling
from .mixture import Mixture
from .placement import Passes, Plan
from .residents import Kept, keep
from .sizes import format_size, whole_mib

# More tiles of drafted nodes than this hardly ever pay, for one text.
TREE_TILES = 4
# The same for all texts of a pass on a device.
MOST_TREE_TILES = 32
# Tiles of a prompt in one sweep, if there is any room: on a processor their arithmetic takes as long as the sweep.
FEW_TILES = 4
# Tiles of a prompt in one sweep: the arithmetic for so many takes longer than the weights take to come.
PASS_TILES = 64
# Of the budget, for what no one can count.
MARGIN = 0.02
# Parts that the ring must hold beside the one that arrives.
HELD_PARTS = 1
# Bytes of a ring beside weights that stay, where there is room.
USUAL_RING = 256 * MIB


def tree_tiles(rows: int, free: bool) -> int:
    """Tiles of drafted nodes, of `rows` texts together, of which more would hardly ever pay. `free`: nodes of a pass cost next to
    nothing beside its weights, as on a device with a product of rows."""
    return min(2 * TREE_TILES * rows, MOST_TREE_TILES) if free else TREE_TILES + (rows - 1) // 2


def smallest_passes(request: PlanRequest) -> Passes:
    """Trees of the size that was forced or of one tile, and as much of prompts beside them."""
    trees = -(-request.rows * max(request.tree_nodes, 1) // request.tile)
    return Passes(trees, trees - (-request.rows // request.tile))


def tree_slots(footprint: Footprint, request: PlanRequest, passes: Passes) -> int:
    """Cache slots past the context of each row, for the nodes of the largest tree that a row may have in `passes`."""
    # Rows of a rectangle are moved until they end in the same column.
    if request.padded_rows:
        return request.scratch
    nodes = request.tree_nodes or passes.trees * request.tile
    recorded = request.record_nodes if footprint.record_bytes else 0
    return min(max(nodes, recorded), request.scratch)


def columns_of(context: int, scratch: int) -> int:
    """Cache slots of a row that holds `context` tokens and has `scratch` slots for trees: they come in blocks of 64."""
    return -(-(context + scratch) // 64) * 64


def widened(passes: Passes, room: int, footprint: Footprint, request: PlanRequest) -> Passes:
    """Spend `room` bytes on extra tiles: FEW_TILES for prompts, those that pay for trees, half of the rest for prompts.

    The first hide a sweep on a processor, the second let trees grow, the last make longer pieces of prompts."""

    def cost(of: Passes) -> int:
        return sum(_fixed(footprint, request, request.context, of).values())

    def grown(start: Passes, most: int, share: int, trees: bool) -> Passes:
        """`start` with as many more tiles, at most `most`, as fit in a `share`-th of what is left of the room."""

        def more(tiles: int) -> Passes:
            return Passes(start.trees + (tiles if trees else 0), start.tiles + tiles)

        taken = cost(start)
        left = max(room - taken + cost(passes), 0)
        return more(bisect_right(range(1, max(most, 0) + 1), left // share, key=lambda tiles: cost(more(tiles)) - taken))

    prompt = passes.tiles - passes.trees
    longest = max(min(-(-request.context // request.tile), PASS_TILES), prompt)
    few = grown(passes, min(FEW_TILES, longest) - prompt, 1, trees=False)
    trees = grown(few, 0 if request.tree_nodes else request.tree_tiles - few.trees, 1, trees=True)
    return grown(trees, longest - (trees.tiles - trees.trees), 2, trees=False)


def make_plan(footprint: Footprint, request: PlanRequest) -> Plan:
    """Place every byte. Raises UsageError naming the smallest budget, or the largest context, that would work."""
    passes = smallest_passes(request)
    fixed = _fixed(footprint, request, request.context, passes)
    usable = int(request.budget_bytes * (1 - MARGIN))
    ring_bytes = _least_ring(footprint)
    least = smallest_budget(footprint, request)
    if least > request.budget_bytes:
        raise UsageError(_too_small(footprint, request, least, ring_bytes))
    passes = widened(passes, usable - sum(fixed.values()) - ring_bytes, footprint, request)
    return with_passes(footprint, request, passes)


def with_passes(footprint: Footprint, request: PlanRequest, passes: Passes) -> Plan:
    """The plan whose passes are as large as `passes`, for which the budget must do."""
    fixed = _fixed(footprint, request, request.context, passes)
    usable = int(request.budget_bytes * (1 - MARGIN))
    kept, ring_bytes = _kept(footprint, request, usable - sum(fixed.values()), _least_ring(footprint))
    return _placed(footprint, request, passes, fixed, kept, ring_bytes)


def smallest_budget(footprint: Footprint, request: PlanRequest) -> int:
    """Bytes of the smallest budget for the rows and the context of `request`."""
    return budget_for(footprint, request, smallest_passes(request))


def budget_for(footprint: Footprint, request: PlanRequest, passes: Passes) -> int:
    """Bytes of the smallest budget in which passes are as large as `passes`: nothing stays, and the ring is the smallest."""
    fixed = _fixed(footprint, request, request.context, passes)
    return int((sum(fixed.values()) + _least_ring(footprint)) / (1 - MARGIN)) + 1


def roomier(footprint: Footprint, request: PlanRequest, choices: Sequence[Spilling]) -> PlanRequest:
    """`request`, which spills, with the last of `choices` that takes at most half of what its smallest plan leaves of the budget.
    Each of `choices` holds more than the one before. Drafts see more then, and passes read less from the disk."""
    least = smallest_budget(footprint, request)

    def needed(spilling: Spilling) -> int:
        return smallest_budget(footprint, replace(request, spilling=spilling))

    fitting = bisect_right(choices, (least + request.budget_bytes) // 2, key=needed)
    return replace(request, spilling=choices[fitting - 1]) if fitting else request


def _least_ring(footprint: Footprint) -> int:
    return smallest_ring(footprint.part_bytes, HELD_PARTS) if footprint.part_bytes else 0


def usual_ring(footprint: Footprint, spare: float) -> float:
    """Bytes of the ring where some weights stay in `spare` bytes beside it."""
    return max(_least_ring(footprint), min(spare / 4, USUAL_RING))


def _kept(footprint: Footprint, request: PlanRequest, spare: int, least: int) -> tuple[Kept, int]:
    """What stays in `spare` bytes, and the ring's bytes, at least `least`; 0 where everything stays."""
    if request.resident == "none":
        ring_bytes = max(least, min(spare, _round_trip(sum(footprint.part_bytes))))
    else:
        ring_bytes = max(least, min(spare // 4, USUAL_RING))

    def kept_in(room: int) -> Kept:
        sizes = footprint.part_bytes, footprint.linears
        return keep(*sizes, room, request.resident, request.speeds, ring_bytes, footprint.together_bytes)

    kept = kept_in(spare)
    if not kept.streamed_bytes:
        return kept, 0
    kept = kept_in(spare - ring_bytes)
    return kept, ring_bytes if kept.streamed_bytes else 0


def _placed(
    footprint: Footprint, request: PlanRequest, passes: Passes, fixed: dict[str, int], kept: Kept, ring_bytes: int
) -> Plan:
    resident_bytes = sum(footprint.part_bytes[number] for number in kept.parts)
    whole_bytes = sum(footprint.linears[index].exact_bytes for index in kept.whole)
    decoded_bytes = sum(footprint.linears[index].exact_bytes for index in kept.decoded)
    substitute_bytes = fixed["substitute"] - sum(footprint.linears[index].substitute_bytes for index in kept.whole)
    mixture = Mixture.of(footprint.part_bytes, footprint.linears, kept)
    plan = Plan(
        budget_bytes=request.budget_bytes,
        items={
            **fixed,
            "substitute": substitute_bytes,
            "resident weights": resident_bytes,
            "whole weights": whole_bytes + decoded_bytes,
            "ring": ring_bytes,
        },
        residents=kept.parts,
        whole=kept.whole,
        decoded=kept.decoded,
        ring_bytes=ring_bytes,
        streamed_bytes=kept.streamed_bytes,
        streamed_parts=kept.streamed_parts,
        residual_bytes=sum(footprint.part_bytes),
        context=request.context,
        rows=request.rows,
        scratch=tree_slots(footprint, request, passes),
        record_nodes=request.record_nodes,
        head_unread_bytes=request.head_unread_bytes,
        padded_rows=request.padded_rows,
        layers=request.layers,
        kv_bits=request.kv_bits,
        passes=passes,
        tile=request.tile,
        groups=request.groups,
        draft_level_bytes=substitute_bytes + whole_bytes,
        exact_bytes=footprint.exact_bytes,
        mixture=mixture.all_brought() if mixture is not None and request.all_experts else mixture,
        speeds=request.speeds,
        link_bytes_per_second=request.speeds.link_bytes_per_second,
    )
    return replace(_with_spill(plan, footprint, request), notes=_notes(plan))


def _with_spill(plan: Plan, footprint: Footprint, request: PlanRequest) -> Plan:
    """`plan` with what it says of keys and values that spill."""
    if footprint.spill is None or request.spilling is None or not spills(request, request.context):
        return plan
    beyond = footprint.spill.token_bytes * max(request.context - request.spilling.latest, 0) * request.rows
    return replace(
        plan, spill_latest=request.spilling.latest, spill_threads=footprint.spill.threads, spilled_bytes=beyond
    )


def _notes(plan: Plan) -> tuple[str, ...]:
    tokens = (plan.passes.tiles - plan.passes.trees) * plan.tile
    said = (NOT_EXACT,) if plan.kv_bits else ()
    if not plan.streamed_bytes or tokens >= plan.context:
        return said
    return (
        *said,
        f"prompts are read {tokens} tokens at a time; each piece is a sweep of the weights (more --memory: longer pieces)",
    )


def _fixed(footprint: Footprint, request: PlanRequest, context: int, passes: Passes) -> dict[str, int]:
    """The bytes of everything that does not depend on which weights stay, by the name that people see."""
    columns = columns_of(context, tree_slots(footprint, request, passes))
    spill = footprint.spill if spills(request, context) else None
    # Of each prompt in a pass, only the tile it ends in has logits.
    heads = passes.heads(request.rows)
    levels = footprint.levels if request.widest_level else None
    return {
        "runtime": request.runtime_bytes + footprint.grown_bytes,
        "tokenizer": footprint.tokenizer_bytes,
        "substitute": footprint.substitute_bytes,
        "shared tensors": footprint.shared_bytes,
        "draft model": request.second_model_bytes,
        **({"draft head": request.head_bytes} if request.head_bytes else {}),
        "KV cache": footprint.cache_bytes(columns, request.record_nodes, request.spilling if spill else None) * request.rows,
        **({"spilled keys and values on their way": spill.rooms_bytes} if spill is not None else {}),
        "activations": footprint.tile_bytes * passes.tiles + footprint.working_bytes,
        "logits": footprint.tile_logits_bytes * heads + footprint.choosing_bytes,
        "decoding": footprint.decoding_bytes,
        "embedding" if footprint.levels else "embedding rows": footprint.embedding_bytes,
        "realigning": request.aligning_bytes,
        **({"prefixes": request.prefix_bytes} if request.prefix_bytes else {}),
        **({"grammars": request.grammar_bytes} if request.grammar_bytes else {}),
        "draft levels": levels.total(request.widest_level, request.rows, request.groups) if levels else 0,
    }


def spills(request: PlanRequest, context: int) -> bool:
    """Do keys and values of rows of `context` tokens spill?"""
    return request.spilling is not None and request.spilling.slots < context


def _round_trip(total: int) -> int:
    """A ring of the whole model would be a resident model read again and again; half of it loses nothing. One of a few megabytes is
    read twice ahead, not a hundred times: filling the ring would take longer than all else at load."""
    return min(total // 2 + 16 * MIB, 2 * total)


def _too_small(footprint: Footprint, request: PlanRequest, least: int, ring_bytes: int) -> str:
    """The error of a budget below `least` bytes: what would work."""
    budget = request.budget_bytes
    text = f"--memory {format_size(budget)} is too small: the smallest that works here is {whole_mib(least)}"
    grown = footprint.grown_bytes
    if grown > 0 and least - int(grown / (1 - MARGIN)) <= budget:
        more = f"{format_size(grown)} more than a fresh one: start again"
        text = f"{text} (this process, which prepared the model or compiled kernels, holds {more})"
    room = budget * (1 - MARGIN) - ring_bytes

    def needed(tokens: int) -> int:
        return sum(_fixed(footprint, request, tokens, smallest_passes(request)).values())

    contexts = range(0, request.context, 64)
    fitting = bisect_right(contexts, room, key=needed)
    context = contexts[fitting - 1] if fitting else 0
    return f"{text}, or use --context {context}." if context >= 128 else f"{text}."
