"""One sequence on its way: what an engine runs and a drafter looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .params import SamplingParams


def never(token: int) -> bool:
    return False


@dataclass
class Row:
    """One sequence. `tokens` are the prompt and what was generated; all but the last are in the cache between passes.

    `stops(token)` is asked once for every new token, in order, and says whether generation ends with it."""

    index: int
    tokens: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: frozenset[int] = frozenset()
    stops: Callable[[int], bool] = never
    limit: int = 0
    prompt_length: int = 0
    finish_reason: str | None = None

    @property
    def produced(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        return self.limit - self.produced
