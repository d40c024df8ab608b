"""Where every byte goes, added up before anything is loaded. `--memory` is a ceiling: a plan that does not fit is refused,
with the smallest budget that would do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import UsageError
from ..tiers.ring import smallest_ring
from .placement import Passes, Plan
from .residents import UNKNOWN, Kept, LinearSize, Speeds, keep
from .sizes import format_size
from .widths import GRAPHS, SCORED

MIB = 1 << 20
RUNTIME = 490 * MIB  # interpreter, torch, transformers, compiled kernels and allocator slack; measured, see docs/log.md
RUNTIME_CUDA = 700 * MIB  # the driver's context and libraries on the device
TREE_TILES = 4  # more tiles of drafted nodes than this hardly ever pay
FEW_TILES = 4  # of a prompt in one sweep, if there is any room: on a processor their arithmetic takes as long as it
PASS_TILES = 64  # of a prompt in one sweep: the arithmetic for so many takes longer than the weights take to come
SEARCH = 900 << 10  # bytes of the search's state on a device for each row: nodes, their children, where each one's path lies
GRAPH = 8 * MIB  # what torch and the driver keep for one recorded level: a guess that no GPU has confirmed
MARGIN = 0.02  # of the budget, for what no one can count


@dataclass(frozen=True)
class LevelSize:
    """Bytes that draft levels on a device take: for each node of the widest one (weights aside), for making the noise of a node,
    as far as that is done at once, for each row's search, and for what recorded levels keep beside that."""

    node: int
    noise: int
    row: int = SEARCH
    recorded: int = GRAPHS * GRAPH

    def total(self, width: int, rows: int) -> int:
        """Of levels `width` wide at most; one row more than there are is kept."""
        return self.node * width + self.noise * min(width, SCORED) + self.row * (rows + 1) + self.recorded


@dataclass(frozen=True)
class Needs:
    """What a model takes, in bytes. `substitute`: as far as it is held, to draft or to decode with; `parts`: the residuals in the
    order of a pass, of which three must fit in the ring; `decoding`: what making a part whole takes; `scores_per_token`: of
    attention, for each token of context; `tokenizer`: its tables; `grown`: what this process holds beyond a fresh one."""

    parts: tuple[int, ...]
    substitute: int
    shared: int
    kv_per_token: int
    layers: int
    tile_activations: int
    logits_tile: int
    choosing: int
    embedding_cache: int
    decoding: int = 0
    scores_per_token: int = 0
    tokenizer: int = 0
    grown: int = 0
    linears: tuple[LinearSize, ...] = ()
    levels: LevelSize | None = None  # of a model that drafts on a device

    def alone(self, columns: int) -> int:
        """Of a second model that only drafts, held whole, with a cache of `columns` in all."""
        weights = self.substitute + self.shared + self.embedding_cache
        return weights + self.kv_per_token * columns + 2 * self.tile_activations + self.logits_tile


@dataclass(frozen=True)
class Request:
    """What was asked for: budget in bytes, rows that run together, tokens per row, scratch slots for trees, residents;
    `companion`: what a second, drafting model takes; `tree`: nodes that each row's tree will have (0: as many as pay); `level`:
    nodes of the widest draft level on a device (0: none)."""

    budget: int
    rows: int
    context: int
    scratch: int
    resident: str = "auto"
    tile: int = 32
    runtime: int = RUNTIME
    companion: int = 0
    tree: int = 0
    level: int = 0
    speeds: Speeds = UNKNOWN


def smallest_passes(request: Request) -> Passes:
    """Trees of the size that was forced or of one tile, and as much of prompts beside them."""
    trees = -(-request.rows * max(request.tree, 1) // request.tile)
    return Passes(trees, trees - (-request.rows // request.tile))


def widened(passes: Passes, room: int, needs: Needs, request: Request) -> Passes:
    """With what `room` bytes pay for: a few tiles of a prompt, which hide a sweep on a processor; then trees that may grow;
    then longer pieces of prompts from half of what is left."""
    trees, prompt = passes.trees, passes.tiles - passes.trees
    longest = max(min(-(-request.context // request.tile), PASS_TILES), prompt)
    tile, tree_tile = max(needs.tile_activations, 1), max(needs.tile_activations + needs.logits_tile, 1)
    few = min(max(FEW_TILES - prompt, 0), longest - prompt, room // tile)
    room -= few * tile
    more = 0 if request.tree else min(max(TREE_TILES - trees, 0), room // tree_tile)
    room -= more * tree_tile
    rest = min(longest - prompt - few, room // 2 // tile)
    return Passes(trees + more, trees + more + prompt + few + rest)


def make_plan(needs: Needs, request: Request) -> Plan:
    """Place every byte. Raises UsageError naming the smallest budget, or the largest context, that would work."""
    passes = smallest_passes(request)
    fixed = _fixed(needs, request, request.context, passes)
    usable = int(request.budget * (1 - MARGIN))
    least_ring = smallest_ring(needs.parts, held=1) if needs.parts else 0
    least = int((sum(fixed.values()) + least_ring) / (1 - MARGIN)) + 1
    if least > request.budget:
        raise UsageError(_too_small(needs, request, least, least_ring))
    passes = widened(passes, usable - sum(fixed.values()) - least_ring, needs, request)
    fixed = _fixed(needs, request, request.context, passes)
    spare = usable - sum(fixed.values())
    total = sum(needs.parts)
    ring = max(
        least_ring, min(spare, _round_trip(total)) if request.resident == "none" else min(spare // 4, 256 * MIB)
    )

    def kept_in(room: int) -> Kept:
        return keep(needs.parts, needs.linears, room, request.resident, request.speeds, ring)

    kept = kept_in(spare)
    if kept.streamed:
        kept = kept_in(spare - ring)
    parts, whole = (sum(needs.parts[i] for i in kept.parts), sum(needs.linears[i].exact for i in kept.whole))
    substitute = fixed["substitute"] - sum(needs.linears[i].substitute for i in kept.whole)
    ring = ring if kept.streamed else 0
    plan = Plan(
        request.budget,
        {**fixed, "substitute": substitute, "resident weights": parts, "whole weights": whole, "ring": ring},
        kept.parts,
        ring,
        kept.streamed,
        total,
        request.context,
        request.rows,
        passes,
        request.tile,
        whole=kept.whole,
        level=substitute + whole,
        exact=sum(linear.exact for linear in needs.linears),
        speeds=request.speeds,
        link_bytes_per_second=request.speeds.link,
    )
    return replace(plan, notes=_notes(plan))


def _notes(plan: Plan) -> tuple[str, ...]:
    most = (plan.passes.tiles - plan.passes.trees) * plan.tile
    if not plan.streamed or most >= plan.context:
        return ()
    return (
        f"prompts are read {most} tokens at a time; each piece is a sweep of the weights (more --memory: longer pieces)",
    )


def _fixed(needs: Needs, request: Request, context: int, passes: Passes) -> dict[str, int]:
    columns = -(-(context + request.scratch) // 64) * 64
    heads = min(
        passes.tiles, passes.trees + request.rows
    )  # of each prompt in a pass, only the tile it ends in has logits
    return {
        "runtime": request.runtime + needs.grown,
        "tokenizer": needs.tokenizer,
        "substitute": needs.substitute,
        "shared tensors": needs.shared,
        "draft model": request.companion,
        "KV cache": needs.kv_per_token * columns * request.rows,
        "activations": needs.tile_activations * passes.tiles + needs.scores_per_token * columns,
        "logits": needs.logits_tile * heads + needs.choosing,
        "decoding": needs.decoding,
        "embedding" if needs.levels else "embedding rows": needs.embedding_cache,
        "draft levels": needs.levels.total(request.level, request.rows) if needs.levels and request.level else 0,
    }


def _round_trip(total: int) -> int:
    """A ring of the whole model would be a resident model read again and again; half of it loses nothing."""
    return total // 2 + 16 * MIB


def _too_small(needs: Needs, request: Request, least: int, ring: int) -> str:
    smallest = -(-least // MIB)  # rounded up, so that what is named does work
    text = f"--memory {format_size(request.budget)} is too small: the smallest that works here is {smallest} MiB"
    if needs.grown and least - int(needs.grown / (1 - MARGIN)) <= request.budget:
        more = f"{format_size(needs.grown)} more than a fresh one: start again"
        text = f"{text} (this process, which prepared the model or compiled kernels, holds {more})"
    without, with_ = (sum(_fixed(needs, request, tokens, smallest_passes(request)).values()) for tokens in (0, 4096))
    room = request.budget * (1 - MARGIN) - without - ring
    context = int(room / ((with_ - without) / 4096)) // 64 * 64
    return f"{text}, or use --context {context}." if context >= 128 else f"{text}."
