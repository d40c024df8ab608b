"""Numbers as people read them, and the one JSON object as programs do."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..plan.sizes import format_size

if TYPE_CHECKING:
    from ..stats import Stats


def rate(bytes_per_second: float) -> str:
    """Links: 1.31 GB/s, 18 MB/s (decimal, as links are sold)."""
    if bytes_per_second >= 1e9:
        return f"{bytes_per_second / 1e9:.2f} GB/s"
    return f"{bytes_per_second / 1e6:.0f} MB/s"


def duration(seconds: float) -> str:
    """2.1 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def now(stats: "Stats") -> str:
    """The live line."""
    parts = [
        f"{stats.new_tokens} tokens",
        f"{stats.tokens_per_second:.1f} tok/s",
        f"{stats.mean_accepted:.1f} tokens per pass",
    ]
    if stats.bytes_streamed:
        parts.append(f"link {rate(stats.link_bytes_per_second)}")
    return " · ".join(parts)


def summary(stats: "Stats", finish_reason: str) -> str:
    """The closing line: tokens, speed, and the limit of the link."""
    passes = "pass" if stats.rounds == 1 else "passes"
    parts = [
        f"{stats.new_tokens} tokens in {duration(stats.decode_seconds)}",
        f"{stats.tokens_per_second:.1f} tok/s",
        f"{stats.mean_accepted:.1f} tokens per pass ({stats.method}, {stats.rounds} {passes})",
    ]
    if stats.bytes_streamed:
        parts.append(f"{format_size(stats.bytes_streamed)} streamed at {rate(stats.link_bytes_per_second)}")
        if stats.limit_tokens_per_second is not None:
            parts.append(f"limit {stats.limit_tokens_per_second:.1f} tok/s")
    parts += [f"first token {duration(stats.ttft_seconds)}", f"peak memory {format_size(stats.peak_memory_bytes)}"]
    if stats.read_again:
        parts.append(f"{stats.read_again} tokens read again")
    if stats.seed is not None:
        parts.append(f"seed {stats.seed}")
    if finish_reason == "cancelled":
        parts.insert(0, "stopped")
    return " · ".join(parts)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of `cells`, the head first, with a rule below it; columns end together."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in cells]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: what is not a finite number becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
