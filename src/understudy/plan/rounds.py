"""How long rounds of drafting and verifying take on a measured machine, and what they then give: the speed that a plan expects.

`LinkSpeeds` compares placements by what no machine can beat, the bytes that are read. Here arithmetic counts too, so a speed can be
compared with the one that is reached."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .placement import Plan

# The deepest draft that is considered, in levels.
MOST_LEVELS = 48
# How often a copy of so many bits chooses the exact model's token, measured on the built-in model (docs/log.md); 8 bits halve what
# 4 leave open.
AGREES = {"int2": 0.793, "int3": 0.915, "int4": 0.961, "int8": 0.98, "exact": 1.0, "mixed": 0.919}
# Branches win back so much of what one level loses, where a level has WIDEST nodes; fewer win back less.
BRANCHES = 0.35
WIDTHS = (1, 2, 3, 4)
WIDEST = WIDTHS[-1]


@dataclass(frozen=True)
class Arithmetic:
    """How fast this machine computes, measured on it. Speeds are bytes per second, times seconds."""

    # A draft level of one node, by bytes of the copy.
    copy_rate: float
    # Seconds that each more node of a level takes for each byte of the copy.
    copy_node_seconds: float
    # A pass of one node, by bytes of exact weights in 16 bits: rebuilt from code and residual, and as they lie.
    rebuilt_rate: float
    plain_rate: float
    # Seconds that each more node of a pass takes for each byte of exact weights.
    node_seconds: float
    # One decoder layer beside its products: in a draft level of one node, and for each more node of a level.
    level_layer: float
    level_node: float
    # The same in a pass: for each tile of it, and for each of its nodes.
    pass_layer: float
    pass_node: float
    # What a round takes besides: searching, choosing, keeping.
    round_rest: float

    @classmethod
    def of_bandwidth(cls, bandwidth: float) -> Arithmetic:
        """A machine of which only the speed of its memory is known, in bytes per second: only reading takes time."""
        rates = {"copy_rate": bandwidth, "rebuilt_rate": bandwidth, "plain_rate": bandwidth}
        return cls(**{field.name: rates.get(field.name, 0.0) for field in fields(cls)})

    def level_seconds(self, nbytes: int, layers: int, nodes: float) -> float:
        """A draft level of so many nodes, by a copy of so many bytes and layers."""
        more = max(nodes - 1, 0.0)
        products = nbytes * (1 / self.copy_rate + more * self.copy_node_seconds)
        return products + layers * (self.level_layer + more * self.level_node)


@dataclass(frozen=True)
class Drafting:
    """What drafts give on some kind of text. Chances depend on text and copy, not on the machine."""

    # The chance that a level's likeliest token is the target's, where all before it were.
    agrees: float
    # Tokens that a level adds to the likeliest chain: more than one where the text itself suggests some.
    reach: float = 1.0
    # Of a trained head that drafts in the place of the copy: its bytes, which a level reads in one layer. 0: the copy drafts.
    head_bytes: int = 0

    @classmethod
    def by_copy(cls, quantizer: str) -> Drafting:
        """What is expected of a copy made by `quantizer` before anything was seen."""
        return cls(AGREES.get(quantizer.partition(":")[0], AGREES["int4"]))

    @classmethod
    def seen(cls, tokens: float, levels: float, nodes: float, reach: float = 1.0) -> Drafting:
        """What explains rounds of `levels` levels and `nodes` drafted nodes that gave `tokens` tokens on average."""
        low, high = 0.0, 1.0
        width = nodes / max(levels * reach, 1e-9)
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if cls(middle, reach).tokens(levels, width) < tokens else (low, middle)
        return cls(high, reach)

    def tokens(self, levels: float, width: float) -> float:
        """Tokens of a round with drafts of so many levels of `width` nodes, the bonus token included."""
        depth = levels * self.reach
        won = BRANCHES * min(max(width - 1, 0.0) / (WIDEST - 1), 1.0)
        chance = self.agrees + won * (1 - self.agrees)
        return 1 + depth if chance >= 1 else (1 - chance ** (depth + 1)) / (1 - chance)


@dataclass(frozen=True)
class Round:
    """One draft and the pass that verifies it, on average."""

    # Levels of the draft; 0: none.
    levels: int
    # Tokens of each row.
    tokens: float
    draft_seconds: float
    # Waiting for weights included.
    pass_seconds: float
    # Rows that share it.
    rows: int = 1

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.rows * self.text_tokens_per_second

    @property
    def text_tokens_per_second(self) -> float:
        """Of one row."""
        return self.tokens / (self.draft_seconds + self.pass_seconds)


def round_of(plan: Plan, arithmetic: Arithmetic, drafting: Drafting, levels: int, width: int = 1) -> Round:
    """The round of `plan` whose drafts have so many levels of `width` nodes. The link fills the ring while drafting."""
    rows = plan.rows
    wide = rows * drafting.reach * width
    level = arithmetic.level_seconds(plan.draft_level_bytes, plan.layers, wide)
    if drafting.head_bytes:
        level = replace(arithmetic, copy_rate=arithmetic.plain_rate).level_seconds(drafting.head_bytes, 1, wide)
    drafted = levels * level
    nodes = rows * (1 + round(levels * drafting.reach * width))
    plain = plan.exact_bytes if plan.residual_bytes >= plan.exact_bytes else plan.items.get("whole weights", 0)
    reading = (plan.exact_bytes - plain) / arithmetic.rebuilt_rate + plain / arithmetic.plain_rate
    tiles = -(-nodes // plan.tile)
    layer = tiles * arithmetic.pass_layer + nodes * arithmetic.pass_node
    busy = reading + nodes * arithmetic.node_seconds * plan.exact_bytes + plan.layers * layer
    link = plan.speeds.link_bytes_per_second
    late = 0.0
    if plan.streamed_bytes and link:
        early = min(plan.ring_bytes, plan.streamed_bytes, drafted * link)
        late = (plan.streamed_bytes - early) / link
    tokens = drafting.tokens(levels, width)
    return Round(levels, tokens, drafted, max(busy, late) + (plan.spill_seconds or 0.0) + arithmetic.round_rest, rows)


def expected(plan: Plan, arithmetic: Arithmetic, drafting: Drafting | None) -> Round:
    """The round that `plan` should run: of all shapes of trees that its passes have room for, the one that gives most tokens per
    second. None: nothing drafts."""
    if drafting is None:
        return round_of(plan, arithmetic, Drafting(0.0), 0)
    room = plan.passes.trees * plan.tile // plan.rows - 1
    shapes = [(levels, width) for levels in range(MOST_LEVELS + 1) for width in WIDTHS if levels * drafting.reach * width <= room]
    rounds = (round_of(plan, arithmetic, drafting, *shape) for shape in shapes)
    return max(rounds, key=lambda one: one.tokens_per_second)
