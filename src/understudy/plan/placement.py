"""A plan as it is made, carried around and shown: what lies where, and how fast that can be."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .mixture import Mixture
from .residents import LEVELS, UNKNOWN, LinkSpeeds
from .sizes import format_size

# How a model is split over devices.
BLOCKS, STAGES = "blocks", "stages"


@dataclass(frozen=True)
class Passes:
    """How many tiles a pass may have. A longer prompt takes several passes."""

    # Of drafted nodes.
    trees: int
    # In all.
    tiles: int

    def heads(self, rows: int) -> int:
        """Tiles that may have logits: those of drafts, and the one in which each of `rows` prompts ends."""
        return min(self.tiles, self.trees + rows)


@dataclass(frozen=True)
class Plan:
    """Where every byte goes. `items` adds up to at most `budget_bytes`."""

    # Fast memory that may be used.
    budget_bytes: int
    # Bytes by the name that people see.
    items: dict[str, int]
    # Numbers of the residual parts that stay in fast memory.
    residents: frozenset[int]
    # Numbers of the Linears whose exact weights stay in fast memory in place of their substitutes.
    whole: frozenset[int]
    # The ring's memory; 0 where nothing streams.
    ring_bytes: int
    # What a pass streams, of all `residual_bytes`.
    streamed_bytes: int
    residual_bytes: int
    # Tokens of a prompt and its continuation together.
    context: int
    # Sequences that run together: rows of the KV cache.
    rows: int
    # Cache slots past the context of each row, for the nodes of a tree.
    scratch: int
    passes: Passes
    # Nodes of one tile.
    tile: int
    # Weights that one draft level reads, and that one pass reads.
    draft_level_bytes: int
    exact_bytes: int
    # Residual parts that a pass streams.
    streamed_parts: int = 0
    # Of all these bytes, those of experts, of which a pass uses some; None: there are none.
    mixture: Mixture | None = None
    # Of the draft head, the bytes of experts that a level of one token leaves unread.
    head_unread_bytes: int = 0
    # Numbers of the Linears whose exact weights stay in fast memory as they are, beside their substitutes.
    decoded: frozenset[int] = frozenset()
    # Decoder layers.
    layers: int = 0
    speeds: LinkSpeeds = UNKNOWN
    # From where the weights stream; 0: not known.
    link_bytes_per_second: float = 0.0
    # Where the model computes.
    device: str = "cpu"
    # Exact weights that the host may hold behind an accelerator.
    host_bytes: int = 0
    # The smallest budget that would do for this context; 0: not worked out.
    least_bytes: int = 0
    # The drafter and its options, as they were chosen; empty: no drafter was planned for.
    method: str = ""
    # The quantisers of the copy, in words; empty: not said.
    copy: str = ""
    # Nodes of each sequence's tree that recurrent layers have room for.
    record_nodes: int = 0
    # Rows that a pass verifies in a left-padded rectangle; 0: each row has a length of its own.
    padded_rows: int = 0
    # Numbers of the residual parts that are this device's; None: there is no other device.
    parts: frozenset[int] | None = None
    # Numbers of the Linears of which anything is here that is no part; None: all of them.
    linears: frozenset[int] | None = None
    # How the model is split over devices, by "blocks" of outputs or in "stages" of layers; empty: there is one device.
    split: str = ""
    # The first decoder layer of this device's stage, and one past the last.
    stage: tuple[int, int] = (0, 0)
    # Groups of texts that may be under way at the same time, each at another stage.
    groups: int = 1
    # What each further device holds: its own parts, what decodes them, and their stream. Their bytes are not in `items`.
    lanes: tuple[Plan, ...] = ()
    # Bits of a key's or value's number, where not the model's own type: the text is not the exact model's then. 0: that type.
    kv_bits: int = 0
    # Latest tokens of each text whose keys and values stay in fast memory, while older ones lie in a file; 0: all stay.
    spill_latest: int = 0
    # Threads that attend to those in the file side by side.
    spill_threads: int = 1
    # Bytes in that file when all texts are as long as they may be: a pass reads them once for each tile of theirs.
    spilled_bytes: int = 0
    # What a person should know, a line each.
    notes: tuple[str, ...] = ()

    def noted(self, *notes: str) -> Plan:
        """The same plan with more notes; empty ones are left out."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))

    @property
    def row_nodes(self) -> int:
        """The most nodes that the tree of each row of a rectangle may have."""
        assert self.padded_rows, "rows of their own lengths share what there is"
        return self.tile * self.passes.trees // self.padded_rows

    @property
    def used(self) -> int:
        """Bytes of fast memory in all."""
        return sum(self.items.values())

    @property
    def pass_nodes(self) -> int:
        """The most nodes of a pass."""
        return self.passes.tiles * self.tile

    @property
    def plain_tokens_per_second(self) -> float | None:
        """The limit of plain offloading: link bandwidth over bytes streamed per pass. None when nothing is streamed."""
        known = self.streamed_bytes and self.link_bytes_per_second
        return self.link_bytes_per_second / self.streamed_by(1) if known else None

    def streamed_by(self, nodes: float) -> float:
        """Bytes that a pass of so many nodes streams: of experts, those that it is expected to use."""
        return self.streamed_bytes - (self.mixture.streamed_bytes * self.mixture.unused(nodes) if self.mixture else 0)

    def level_by(self, nodes: float) -> float:
        """Bytes of weights that a draft level of so many nodes reads."""
        return self.draft_level_bytes - (self.mixture.level_bytes * self.mixture.unused(nodes) if self.mixture else 0)

    def exact_by(self, nodes: float) -> float:
        """Bytes of exact weights that a pass of so many nodes reads."""
        return self.exact_bytes - (self.mixture.exact_bytes * self.mixture.unused(nodes) if self.mixture else 0)

    @property
    def levels_of_a_pass(self) -> float:
        """How many draft levels take as long as the link takes for what a pass streams, by bytes alone; 0: not known, or none."""
        link, memory = self.link_bytes_per_second, self.speeds.memory_bytes_per_second
        if not (self.streamed_bytes and link and memory and self.draft_level_bytes):
            return 0.0
        return (self.streamed_by(LEVELS) / link) / (self.level_by(1) / memory)

    @property
    def head_level_bytes(self) -> int:
        """What a level of a trained head that drafts alone reads for one token: the head, with all it keeps, but experts that the
        token does not go to, and the copy of the output head."""
        return self.items.get("draft head", 0) - self.head_unread_bytes + self.draft_level_bytes

    def predicted(self, tokens: float, levels: float) -> float | None:
        """Tokens per second when rounds of `levels` draft levels give `tokens` tokens; None where no speed is known."""
        if not self.speeds.link_bytes_per_second or not self.speeds.memory_bytes_per_second:
            return None
        speeds = replace(self.speeds, draft_levels=levels if self.speeds.draft_levels else 0)
        nodes = max(levels, 1.0)
        seconds = speeds.round_seconds(self.streamed_by(nodes), self.ring_bytes, self.level_by(1), self.exact_by(nodes))
        return tokens / max(seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON, under the keys that it has had from the start."""
        return {
            "budget": self.budget_bytes,
            "items": dict(self.items),
            "residents": len(self.residents),
            "ring": self.ring_bytes,
            "streamed": self.streamed_bytes,
            "total": self.residual_bytes,
            "context": self.context,
            "rows": self.rows,
            "passes": asdict(self.passes),
            "tile": self.tile,
            "device": self.device,
            "method": self.method,
            "link_bytes_per_second": self.link_bytes_per_second,
            "whole": len(self.whole),
            "decoded": len(self.decoded),
            "level": self.draft_level_bytes,
            "exact": self.exact_bytes,
            "speeds": {
                "link": self.speeds.link_bytes_per_second,
                "memory": self.speeds.memory_bytes_per_second,
                "levels": self.speeds.draft_levels,
            },
            "host_memory": self.host_bytes,
            "notes": list(self.notes),
            "used": self.used,
            "smallest_budget": self.least_bytes,
            "limit_plain_tokens_per_second": self.plain_tokens_per_second,
            **({"mixture": asdict(self.mixture)} if self.mixture else {}),
            **({"copy": self.copy} if self.copy else {}),
            **({"kv_bits": self.kv_bits} if self.kv_bits else {}),
            **({"spill": self.spill_latest, "spilled": self.spilled_bytes} if self.spill_latest else {}),
            **({"lanes": [lane.lane_dict() for lane in self.lanes]} if self.lanes else {}),
        }

    def lane_dict(self) -> dict[str, Any]:
        """The plan of a further device as JSON."""
        whole = self.to_dict()
        names = ("device", "budget", "items", "used", "residents", "ring", "streamed", "total", "link_bytes_per_second")
        return {"parts": len(self.parts or ()), **{name: whole[name] for name in (*names, "host_memory", "notes")}}

    def lines(self) -> list[str]:
        """For people: one line per kind of memory, then what is streamed and how fast that can be."""
        width = max(map(len, self.items))
        lines = [f"{name:<{width}}  {format_size(size):>10}" for name, size in self.items.items() if size]
        lines.append(
            f"{'in all':<{width}}  {format_size(self.used):>10}  of {format_size(self.budget_bytes)} ({self.device})"
        )
        lines += [*self._copy_lines(), *self._least_lines(), *self._kept_lines(), *self._spill_lines()]
        return [*lines, *(lane.lane_line() for lane in self.lanes), *self._speed_lines(), *self.notes]

    def lane_line(self) -> str:
        """What a further device holds, for people."""
        kept = self.items["resident weights"]
        return (
            f"{self.device}: {format_size(self.used)} of {format_size(self.budget_bytes)}: {len(self.parts or ())} parts of exact"
            f" weights, of which {format_size(kept)} stay and {format_size(self.streamed_bytes)} come in each pass"
        )

    def _copy_lines(self) -> list[str]:
        return [f"copy of the weights: {self.copy}"] if self.copy and self.items["substitute"] else []

    def _least_lines(self) -> list[str]:
        # rounded up, so that what is named does work
        least = f"{-(-self.least_bytes // 2**20)} MiB"
        return [f"smallest --memory for {self.context} tokens of context: {least}"] if self.least_bytes else []

    def _kept_lines(self) -> list[str]:
        kept = []
        if self.residents:
            kept.append(f"{len(self.residents)} residual parts beside the substitute")
        if self.whole:
            kept.append(f"{len(self.whole)} Linears whole, for draft and target")
        if self.decoded:
            kept.append(f"{len(self.decoded)} Linears whole beside the substitute")
        return [f"kept in fast memory: {', '.join(kept)}"] if kept else []

    def _spill_lines(self) -> list[str]:
        if not self.spill_latest:
            return []
        line = (
            f"keys and values: those of the latest {self.spill_latest} tokens of a text stay in fast memory, older ones go to disk,"
            f" up to {format_size(self.spilled_bytes)}"
        )
        if (seconds := self.spill_seconds) is not None:
            line += f"; when the context is full, a pass takes {seconds:.2g} s longer for them"
        return [line]

    @property
    def spill_seconds(self) -> float | None:
        """Seconds that a pass reads spilled keys and values when all texts are as long as they may be; None where the speed of the
        link is not known."""
        link = self.speeds.link_bytes_per_second
        if not self.spilled_bytes:
            return 0.0
        return self.spilled_bytes / link if link else None

    def _speed_lines(self) -> list[str]:
        share = self.streamed_bytes / self.residual_bytes if self.residual_bytes else 0.0
        streamed, whole = format_size(self.streamed_bytes), format_size(self.residual_bytes)
        lines = [f"streamed per pass: {streamed} of {whole} exact weights ({share:.0%})"]
        if self.mixture is not None and not self.mixture.exact_bytes:
            lines[0] += " for any tokens, since all experts come" if self.streamed_bytes else ""
        elif self.mixture is not None:
            few, more = (format_size(round(self.streamed_by(nodes))) for nodes in (1, self.tile))
            lines[0] = (
                f"streamed per pass: {few} of {whole} exact weights for one token, {more} for {self.tile} whose experts are"
                " spread evenly"
            )
        if (plain := self.plain_tokens_per_second) is not None:
            speed = f"link {self.link_bytes_per_second / 1e9:.2f} GB/s: plain offloading at most {plain:.2f} tok/s"
            lines.append(f"{speed}; drafting multiplies that by the tokens accepted per pass")
        if self.speeds.draft_levels and (predicted := self.predicted(LEVELS, LEVELS)) is not None:
            lines.append(
                f"with {LEVELS} tokens per pass from drafts of {LEVELS} levels: about {predicted:.1f} tok/s at most"
            )
        return lines
