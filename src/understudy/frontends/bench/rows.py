"""What a bench found: sums over the prompts, the ratios they imply, and whether all methods wrote the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...llm import Completion

BASELINE = "none"


@dataclass(frozen=True)
class Row:
    """One method at one temperature, summed over the prompts. Times in seconds."""

    method: str
    temperature: float
    token_ids: tuple[tuple[int, ...], ...]
    new_tokens: int
    rounds: int
    tokens_per_pass: float
    decode_seconds: float
    draft_seconds: float
    wait_seconds: float
    compute_seconds: float
    ttft_seconds: float
    bytes_streamed: int
    stream_seconds: float
    peak_memory_bytes: int
    link_peak: float  # bytes per second, measured on this machine

    @classmethod
    def of(cls, method: str, temperature: float, completions: "Sequence[Completion]", link_peak: float) -> "Row":
        stats = [completion.stats for completion in completions]
        rounds = sum(s.rounds for s in stats)
        return cls(
            method,
            temperature,
            tuple(tuple(completion.token_ids) for completion in completions),
            sum(s.new_tokens for s in stats),
            rounds,
            sum(s.mean_accepted * s.rounds for s in stats) / max(rounds, 1),
            sum(s.decode_seconds for s in stats),
            sum(s.draft_seconds for s in stats),
            sum(s.wait_seconds for s in stats),
            sum(s.compute_seconds for s in stats),
            sum(s.ttft_seconds for s in stats) / len(stats),
            sum(s.bytes_streamed for s in stats),
            sum(s.stream_seconds for s in stats),
            max(s.peak_memory_bytes for s in stats),
            link_peak,
        )

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / max(self.decode_seconds, 1e-9)

    @property
    def bytes_per_pass(self) -> float:
        return self.bytes_streamed / max(self.rounds, 1)

    @property
    def link_bytes_per_second(self) -> float:
        return self.bytes_streamed / self.stream_seconds if self.stream_seconds else 0.0

    @property
    def limit(self) -> float | None:
        """Tokens per second if nothing but a link that never rests took time: A * B / b. None: nothing streams."""
        return self.tokens_per_pass * self.link_peak / self.bytes_per_pass if self.bytes_streamed else None

    @property
    def rest_seconds(self) -> float:
        return max(self.decode_seconds - self.draft_seconds - self.wait_seconds - self.compute_seconds, 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "tokens_per_second": self.tokens_per_second,
            "bytes_per_pass": self.bytes_per_pass,
            "link_bytes_per_second": self.link_bytes_per_second,
            "limit_tokens_per_second": self.limit,
            "rest_seconds": self.rest_seconds,
        }


@dataclass
class Bench:
    """Everything one run of `bench` found."""

    model: str
    machine: dict[str, Any] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    reference: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "machine": self.machine,
            "prompts": self.prompts,
            "rows": [{**row.to_dict(), "times_none": times(row, self.rows)} for row in self.rows],
            "identical": not self.differences,
            "differences": self.differences,
            "reference": self.reference,
        }


def times(row: Row, rows: Sequence[Row]) -> float | None:
    """How many times as fast as `none` at the same temperature; None where that was not run."""
    for other in rows:
        if other.method == BASELINE and other.temperature == row.temperature:
            return row.tokens_per_second / other.tokens_per_second
    return None


def difference(rows: Sequence[Row]) -> list[str]:
    """One line for each (method, temperature, prompt) that wrote other tokens than the first method did."""
    lines = []
    first = {row.temperature: row for row in reversed(rows)}
    for row in rows:
        base = first[row.temperature]
        for index, (ids, expected) in enumerate(zip(row.token_ids, base.token_ids, strict=True)):
            if (where := first_difference(ids, expected)) is not None:
                place = f"{row.method} at T={row.temperature:g}, prompt {index + 1}, token {where + 1}"
                lines.append(f"{place}: {_token(ids, where)}, but {_token(expected, where)} from {base.method}")
    return lines


def first_difference(ids: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first index where two token sequences part; None when they are equal."""
    for index, (left, right) in enumerate(zip(ids, expected, strict=False)):
        if left != right:
            return index
    return None if len(ids) == len(expected) else min(len(ids), len(expected))


def _token(ids: Sequence[int], index: int) -> str:
    return str(ids[index]) if index < len(ids) else "the end"
