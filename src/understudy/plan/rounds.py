"""How long rounds of drafting and verifying take on a measured machine, and what they then give: the speed that a plan expects.

`LinkSpeeds` compares placements by what no machine can beat, the bytes that are read. Here arithmetic counts too, so a speed can be
compared with the one that is reached."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from .drafts import NO_DRAFT, Drafts, DraftShape

if TYPE_CHECKING:
    from .placement import Plan


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
    # What a level takes besides: choosing what to run, and what the text itself suggests.
    level_rest: float
    # One decoder layer beside its products in a pass of one node, for each more node, and for each more tile.
    pass_layer: float
    pass_node: float
    pass_tile: float
    # What each part that a pass streams takes beside its products and the link.
    part_seconds: float
    # What a round takes besides: searching, choosing, keeping.
    round_rest: float
    # A level of a trained head that drafts alone, beside reading its weights: its layer and all else are stock code.
    head_level: float

    @classmethod
    def of_bandwidth(cls, bandwidth: float) -> Arithmetic:
        """A machine of which only the speed of its memory is known, in bytes per second: only reading takes time."""
        rates = {"copy_rate": bandwidth, "rebuilt_rate": bandwidth, "plain_rate": bandwidth}
        return cls(**{field.name: rates.get(field.name, 0.0) for field in fields(cls)})

    def level_seconds(self, plan: Plan, nodes: float) -> float:
        """A draft level of so many nodes, by the copy and the layers of `plan`."""
        more = max(nodes - 1, 0.0)
        products = plan.level_by(nodes) / self.copy_rate + more * self.copy_node_seconds * plan.level_by(1)
        return products + plan.layers * (self.level_layer + more * self.level_node) + self.level_rest

    def head_seconds(self, nbytes: int, nodes: float) -> float:
        """A draft level of so many nodes, by a trained head of so many bytes, which are read as whole weights of the target are."""
        more = max(nodes - 1, 0.0)
        return nbytes * (1 / self.plain_rate + more * self.node_seconds) + self.head_level + more * self.level_node

    def busy_seconds(self, plan: Plan, nodes: float) -> float:
        """What a pass of so many nodes takes by `plan`, but for waiting for the link."""
        used = plan.exact_by(nodes)
        plain = used if plan.residual_bytes >= plan.exact_bytes else min(plan.items.get("whole weights", 0), used)
        reading = (used - plain) / self.rebuilt_rate + plain / self.plain_rate
        more, tiles = nodes - 1, math.ceil(nodes / plan.tile) - 1
        layer = self.pass_layer + more * self.pass_node + tiles * self.pass_tile
        products = reading + more * self.node_seconds * plan.exact_by(1)
        streamed = plan.streamed_parts * (plan.streamed_by(nodes) / plan.streamed_bytes if plan.streamed_bytes else 1)
        return products + plan.layers * layer + streamed * self.part_seconds


@dataclass(frozen=True)
class Round:
    """One draft and the pass that verifies it, on average."""

    # Of the draft, for each row.
    shape: DraftShape
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
        return self.shape.tokens / (self.draft_seconds + self.pass_seconds)

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self.shape), "draft_seconds": self.draft_seconds, "pass_seconds": self.pass_seconds, "rows": self.rows}


def round_of(plan: Plan, arithmetic: Arithmetic, shape: DraftShape, head_bytes: int = 0) -> Round:
    """The round of `plan` with drafts of this `shape`. The link fills the ring while drafting. head_bytes: see `Drafts`."""
    wide = plan.rows * shape.level_nodes
    if head_bytes:
        level = arithmetic.head_seconds(head_bytes, wide)
    else:
        level = arithmetic.level_seconds(plan, wide)
    drafted = shape.levels * level
    nodes = plan.rows * (1 + shape.nodes)
    busy = arithmetic.busy_seconds(plan, nodes)
    link = plan.speeds.link_bytes_per_second
    late = 0.0
    if plan.streamed_bytes and link:
        # Of experts nothing comes before it is known which.
        known = plan.streamed_bytes - (plan.mixture.streamed_bytes if plan.mixture else 0)
        early = min(plan.ring_bytes, known, drafted * link)
        late = (plan.streamed_by(nodes) - early) / link
    return Round(shape, drafted, max(busy, late) + (plan.spill_seconds or 0.0) + arithmetic.round_rest, plan.rows)


def expected(plan: Plan, arithmetic: Arithmetic, drafts: Drafts | None) -> Round:
    """The round that `plan` should run: of all shapes of drafts that its passes have room for, the one that gives most tokens per
    second. None: nothing drafts."""
    if drafts is None:
        return round_of(plan, arithmetic, NO_DRAFT)
    room = plan.passes.trees * plan.tile // plan.rows - 1
    rounds = (round_of(plan, arithmetic, shape, drafts.head_bytes) for shape in drafts.shapes(room))
    return max(rounds, key=lambda one: one.tokens_per_second)
