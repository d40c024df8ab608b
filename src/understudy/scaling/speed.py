"""How fast texts are written together by one way of drafting: real runs, by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ..errors import UsageError
from ..params import SamplingParams
from .laws import Speed

if TYPE_CHECKING:
    from ..llm import LLM


@dataclass(frozen=True)
class Way:
    """One way of drafting, for so many texts at once."""

    # The drafter's name, and the directory of its head; "": it has none.
    method: str
    head: str
    # The head's decoder layers.
    depth: int
    batch: int
    # Nodes in each level, and levels, of every draft; 0: nothing is drafted.
    width: int
    levels: int

    def name(self, *others: object) -> str:
        """What its record is called. `others`: what its speed depends on besides."""
        digest = xxhash.xxh3_64_hexdigest("\n".join(map(str, (self.spec, *others))).encode())
        return f"speed-{self.method}-batch{self.batch}-{digest}"

    @property
    def spec(self) -> str:
        """The method with its forced shape: what is drafted does not depend on what takes how long."""
        head = f"{self.head}," if self.head else ""
        return f"{self.method}:{head}width={self.width},depth={self.levels}" if self.width else self.method


def measured(
    model: str | Path | None, way: Way, prompts: Sequence[Sequence[int]], params: SamplingParams, options: dict[str, Any]
) -> Speed:
    """The speed of one way, over `prompts`, of which `way.batch` run together; a few tokens are written before that.

    options: keywords of LLM. Raises UsageError where there are fewer prompts than run together."""
    from ..llm import LLM

    if len(prompts) < way.batch:
        raise UsageError(f"{way.batch} texts at once need as many prompts, got {len(prompts)}.")
    with LLM(model, **{**options, "method": way.spec, "rows": way.batch}) as llm:
        llm.generate([list(prompts[0])], replace(params, max_new_tokens=2))
        return _run(llm, way, prompts, params)


def _run(llm: LLM, way: Way, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Speed:
    """Batches of `way.batch` texts, one after another, so that no pass has fewer for want of prompts. Speed counts from the first
    token on, as everywhere; what passes took is that of all passes, since reading a prompt is nodes like others."""
    clock = llm.engine.clock
    before = replace(clock)
    counters = llm.scheduler.counters()
    seconds = 0.0
    figures = []
    for first in range(0, len(prompts) - way.batch + 1, way.batch):
        completions = llm.generate([list(ids) for ids in prompts[first : first + way.batch]], params)
        figures += [completion.stats for completion in completions]
        seconds += max(completion.stats.decode_seconds for completion in completions)
    taken = llm.scheduler.counters().since(counters)
    passes = clock.passes - before.passes
    rounds = sum(one.rounds for one in figures)
    tokens = sum(one.mean_accepted * one.rounds for one in figures)
    return Speed(
        method=way.spec,
        head=way.head,
        depth=way.depth,
        batch=way.batch,
        width=way.width,
        tokens=round(tokens),
        seconds=seconds,
        passes=passes,
        rows=(clock.rows - before.rows) / passes,
        nodes=(clock.nodes - before.nodes) / passes,
        verified=1 + sum(one.drafted for one in figures) / max(rounds, 1),
        tokens_per_pass=tokens / max(rounds, 1),
        draft_seconds=taken.draft,
        busy_seconds=taken.verify - taken.wait,
        wait_seconds=taken.wait,
    )
