"""The results of a bench: sums over the prompts, the ratios they imply, and whether all methods wrote the same tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...drafters import PLAIN_METHOD

if TYPE_CHECKING:
    from ...llm import Completion


@dataclass(frozen=True)
class Row:
    """One method at one temperature, summed over the prompts. Times in seconds, speeds in bytes per second.

    Speed and passes are those after the first token, which comes with the pass that reads the prompt."""

    method: str
    temperature: float
    token_ids: tuple[tuple[int, ...], ...]
    passes: int
    tokens_per_pass: float
    decode_seconds: float
    draft_seconds: float
    wait_seconds: float
    compute_seconds: float
    ttft_seconds: float
    bytes_per_pass: float
    link_bytes_per_second: float
    link_peak: float
    peak_memory_bytes: int
    resident: str = ""
    # Levels of a draft, and by source the tokens that were suggested in front of the proposer, and those that it said too.
    levels_per_pass: float = 0.0
    suggested: dict[str, int] = field(default_factory=dict)
    agreed: dict[str, int] = field(default_factory=dict)
    # Tokens per second by the plan, at the tokens per pass that were reached.
    predicted: float | None = None

    @classmethod
    def of(cls, method: str, temperature: float, completions: "Sequence[Completion]", link_peak: float) -> "Row":
        stats = [completion.stats for completion in completions]
        passes = sum(s.rounds for s in stats)
        busy = sum(s.stream_seconds for s in stats)
        return cls(
            method,
            temperature,
            tuple(tuple(completion.token_ids) for completion in completions),
            passes,
            sum(s.mean_accepted * s.rounds for s in stats) / max(passes, 1),
            sum(s.decode_seconds for s in stats),
            sum(s.draft_seconds for s in stats),
            sum(s.wait_seconds for s in stats),
            sum(s.compute_seconds for s in stats),
            sum(s.ttft_seconds for s in stats) / len(stats),
            sum(s.bytes_streamed for s in stats) / (passes + len(stats)),
            sum(s.link_bytes_per_second * s.stream_seconds for s in stats) / max(busy, 1e-9),
            link_peak,
            max(s.peak_memory_bytes for s in stats),
            levels_per_pass=sum(s.levels for s in stats) / max(passes, 1),
            suggested=dict(sum((Counter(s.suggested) for s in stats), Counter())),
            agreed=dict(sum((Counter(s.agreed) for s in stats), Counter())),
        )

    @property
    def name(self) -> str:
        """The method, and what it kept in fast memory where plans are compared."""
        return f"{self.method} {self.resident}".rstrip()

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_pass * self.passes / max(self.decode_seconds, 1e-9)

    @property
    def limit(self) -> float | None:
        """Tokens per second if nothing but a link that never rests took time: A * B / b. None: nothing streams, or no token came
        after the first."""
        return self.tokens_per_pass * self.link_peak / self.bytes_per_pass if self.bytes_per_pass and self.passes else None

    @property
    def rest_seconds(self) -> float:
        return max(self.decode_seconds - self.draft_seconds - self.wait_seconds - self.compute_seconds, 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "tokens_per_second": self.tokens_per_second,
            "limit_tokens_per_second": self.limit,
            "rest_seconds": self.rest_seconds,
        }


@dataclass
class Bench:
    """The results of one run of `bench`."""

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
    """How many times as fast as `none` at the same temperature; None where that was not run, or wrote no token after its first."""
    for other in rows:
        if other.method == PLAIN_METHOD and other.temperature == row.temperature and other.passes:
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
                place = f"{row.name} at T={row.temperature:g}, prompt {index + 1}, token {where + 1}"
                lines.append(f"{place}: {_token(ids, where)}, but {_token(expected, where)} from {base.name}")
    return lines


def first_difference(ids: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first index where two token sequences part; None when they are equal."""
    for index, (left, right) in enumerate(zip(ids, expected, strict=False)):
        if left != right:
            return index
    return None if len(ids) == len(expected) else min(len(ids), len(expected))


def _token(ids: Sequence[int], index: int) -> str:
    return str(ids[index]) if index < len(ids) else "the end"
