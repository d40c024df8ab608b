"""What generating took: the figures every front end shows, and the JSON that checks rely on."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from .engine import Engine, Step
from .models.model import Model
from .plan.machine import peak_memory_bytes


@dataclass(frozen=True)
class Stats:
    """Of one request. Seconds and bytes; `mean_accepted`: tokens per verifying pass, the bonus included, all rows together.

    tokens_per_second: the tokens after the first over `decode_seconds`, which starts at the first. `limit_tokens_per_second`:
    what the link allows at this `mean_accepted`, A * B / b (None when nothing is streamed)."""

    method: str
    new_tokens: int
    rounds: int
    mean_accepted: float
    drafted: int
    accepted: int
    tokens_per_second: float
    decode_seconds: float
    ttft_seconds: float
    bytes_streamed: int
    stream_seconds: float
    link_bytes_per_second: float
    limit_tokens_per_second: float | None
    peak_memory_bytes: int
    draft_seconds: float
    wait_seconds: float
    compute_seconds: float
    prompt_tokens: int
    plan: dict[str, Any] = field(default_factory=dict)
    # The seed of a sampled text, drawn where none was given; None for greedy text.
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Counters:
    """Everything that only ever grows, at one moment."""

    used: int
    wait: float
    busy: float
    read: int
    draft: float
    verify: float

    @classmethod
    def of(cls, model: Model, engine: Engine) -> Counters:
        ring = model.ring.stats if model.ring is not None else None
        return cls(
            model.supply.bytes_used,
            ring.wait_seconds if ring else 0.0,
            ring.busy_seconds if ring else 0.0,
            ring.bytes_read if ring else 0,
            engine.clock.draft,
            engine.clock.verify,
        )

    def since(self, before: Counters) -> Counters:
        return Counters(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))


class Gauge:
    """Follows one request from its start; `stats()` may be asked at any time."""

    def __init__(self, model: Model, engine: Engine, method: str, prompt_tokens: int, seed: int | None):
        self.model, self.engine, self.method, self.prompt_tokens = model, engine, method, prompt_tokens
        self.seed = seed
        self.start = time.perf_counter()
        self.before = Counters.of(model, engine)
        self.after_first: Counters | None = None
        self.first = 0.0
        self.tokens = self.first_tokens = self.rounds = self.drafted = self.accepted = 0

    def count(self, steps: list[Step], prefill: bool) -> None:
        """One pass is over. The pass that read a prompt gives the first token and does not count as a round."""
        tokens = sum(len(step.tokens) for step in steps)
        self.tokens += tokens
        self.drafted += sum(step.drafted for step in steps)
        self.accepted += sum(step.accepted for step in steps)
        if prefill:
            self.first_tokens += tokens
        else:
            self.rounds += 1
        if self.after_first is None:
            self.first = time.perf_counter() - self.start
            self.after_first = Counters.of(self.model, self.engine)

    def stats(self) -> Stats:
        now = Counters.of(self.model, self.engine)
        whole = now.since(self.before)
        decode = now.since(self.after_first or self.before)
        seconds = time.perf_counter() - self.start - self.first
        later = self.tokens - self.first_tokens
        mean = later / self.rounds if self.rounds else float(self.tokens)
        rate = later / seconds if later else self.tokens / max(self.first, 1e-9)
        plan = self.model.plan
        limit = None if plan.plain_tokens_per_second is None else mean * plan.plain_tokens_per_second
        return Stats(
            method=self.method,
            new_tokens=self.tokens,
            rounds=self.rounds,
            mean_accepted=mean,
            drafted=self.drafted,
            accepted=self.accepted,
            tokens_per_second=rate,
            decode_seconds=seconds,
            ttft_seconds=self.first,
            bytes_streamed=whole.used,
            stream_seconds=whole.busy,
            link_bytes_per_second=whole.read / whole.busy if whole.busy else 0.0,
            limit_tokens_per_second=limit,
            peak_memory_bytes=peak_memory_bytes() if self.model.device is None else self.model.device.peak_bytes(),
            draft_seconds=decode.draft,
            wait_seconds=decode.wait,
            compute_seconds=decode.verify - decode.wait,
            prompt_tokens=self.prompt_tokens,
            plan=plan.to_dict(),
            seed=self.seed,
        )
