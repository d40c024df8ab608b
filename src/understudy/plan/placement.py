"""A plan as it is made, carried around and shown: what lies where, and how fast that can be."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .residents import LEVELS, UNKNOWN, Speeds
from .sizes import format_size


@dataclass(frozen=True)
class Passes:
    """How many tiles a pass may have: `trees` of drafted nodes, `tiles` in all. A longer prompt takes several passes."""

    trees: int
    tiles: int


@dataclass(frozen=True)
class Plan:
    """The placement. `items` adds up to at most `budget`; `residents` are part numbers, and `whole` numbers of Linears, that are
    kept in fast memory for good. A draft level reads `level` bytes of weights, a pass `exact`."""

    budget: int
    items: dict[str, int]
    residents: frozenset[int]
    ring: int
    streamed: int
    total: int
    context: int
    rows: int
    passes: Passes
    tile: int = 32
    device: str = "cpu"
    method: str = "substitute"
    link_bytes_per_second: float = 0.0
    whole: frozenset[int] = frozenset()
    level: int = 0
    exact: int = 0
    speeds: Speeds = UNKNOWN
    host_memory: int = 0  # behind an accelerator: bytes of exact weights that the host may hold
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> int:
        return sum(self.items.values())

    @property
    def plain_tokens_per_second(self) -> float | None:
        """The limit of plain offloading: link bandwidth over bytes streamed per pass. None when nothing is streamed."""
        return self.link_bytes_per_second / self.streamed if self.streamed and self.link_bytes_per_second else None

    def predicted(self, tokens: float, levels: float) -> float | None:
        """Tokens per second when rounds of so many draft levels give so many tokens; None where no speed is known."""
        if not self.speeds.link or not self.speeds.memory:
            return None
        speeds = replace(self.speeds, levels=levels if self.speeds.levels else 0)
        return tokens / max(speeds.round_seconds(self.streamed, self.ring, self.level, self.exact), 1e-9)

    def to_dict(self) -> dict[str, Any]:
        result = asdict(self)
        result["residents"], result["whole"] = len(self.residents), len(self.whole)
        return {
            **result,
            "notes": list(self.notes),
            "used": self.used,
            "limit_plain_tokens_per_second": self.plain_tokens_per_second,
        }

    def lines(self) -> list[str]:
        """For people: one line per kind of memory, then what is streamed and how fast that can be."""
        width = max(map(len, self.items))
        lines = [f"{name:<{width}}  {format_size(size):>10}" for name, size in self.items.items() if size]
        lines.append(
            f"{'in all':<{width}}  {format_size(self.used):>10}  of {format_size(self.budget)} ({self.device})"
        )
        if self.residents or self.whole:
            kept = [f"{len(self.residents)} residual parts beside the substitute"] * bool(self.residents)
            kept += [f"{len(self.whole)} Linears whole, for draft and target"] * bool(self.whole)
            lines.append(f"kept in fast memory: {', '.join(kept)}")
        share = self.streamed / self.total if self.total else 0.0
        lines.append(
            f"streamed per pass: {format_size(self.streamed)} of {format_size(self.total)} exact weights ({share:.0%})"
        )
        if (plain := self.plain_tokens_per_second) is not None:
            speed = f"link {self.link_bytes_per_second / 1e9:.2f} GB/s: plain offloading at most {plain:.2f} tok/s"
            lines.append(f"{speed}; drafting multiplies that by the tokens accepted per pass")
        if self.speeds.levels and (predicted := self.predicted(LEVELS, LEVELS)) is not None:
            lines.append(
                f"with {LEVELS} tokens per pass from drafts of {LEVELS} levels: about {predicted:.1f} tok/s at most"
            )
        return [*lines, *self.notes]
