"""`understudy bench --batching`: ways of batching side by side, with the same weights, drafts and sampling. Every text must be
the one that its request has alone."""

import gc
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...drafters import DEFAULT_METHOD
from ...errors import UsageError
from ...params import SamplingParams
from ...policies import policy_of, rows_together
from ..live import Live
from ..options import placement
from .cold import measured_model
from .prompts import mixed_lengths, mixed_prompts
from .rows import first_difference

if TYPE_CHECKING:
    from ...llm import LLM

# How the requests that run one by one are called in the table.
ALONE = "alone"
ROWS = 8
# Requests for each row, where nobody says how many.
REQUESTS_A_ROW = 2


@dataclass(frozen=True)
class Workload:
    """What a run of the command compares."""

    model: str | None
    policies: tuple[str, ...]
    method: str
    # Requests that a pass verifies together.
    rows: int
    requests: int
    # How many of them, the first ones, also run one by one.
    alone: int
    prompt_tokens: int
    new_tokens: int
    temperatures: tuple[float, ...]
    seed: int
    # Keywords of LLM.
    options: dict[str, Any]

    @classmethod
    def of(cls, args: Namespace, model: str | None) -> "Workload":
        """Raises UsageError for what makes no sense together. The policies are known: their argument type looked."""
        given = {"--plan": args.plan, "--reference": args.reference, "--plot": args.plot is not None}
        if wrong := [flag for flag, is_given in given.items() if is_given]:
            raise UsageError(f"--batching compares ways of batching, so {wrong[0]} makes no sense beside it.")
        if args.methods and len(args.methods) > 1:
            raise UsageError(f"--batching takes one method, got {', '.join(args.methods)}.")
        rows = args.rows or ROWS
        requests = args.prompts or REQUESTS_A_ROW * rows
        return cls(
            model=model,
            policies=tuple(args.batching),
            method=args.methods[0] if args.methods else DEFAULT_METHOD,
            rows=rows,
            requests=requests,
            alone=requests if args.alone is None else min(args.alone, requests),
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            temperatures=tuple(args.temperatures),
            seed=args.seed,
            options={"generation_config": "none", "context": args.prompt_tokens + args.new_tokens, **placement(args)},
        )

    @property
    def ways(self) -> list[str]:
        """The lines of the table for one temperature."""
        return [*([ALONE] if self.alone else []), *self.policies]

    def params(self, temperature: float) -> list[SamplingParams]:
        """How each request samples; their answers are of mixed lengths."""
        lengths = mixed_lengths(self.requests, self.new_tokens, self.seed + 1)
        return [
            SamplingParams(temperature, seed=self.seed + number, max_new_tokens=length, ignore_eos=True)
            for number, length in enumerate(lengths)
        ]


@dataclass(frozen=True)
class Batched:
    """One way of batching at one temperature. Its seconds go from the start of the first request to the end of the last."""

    policy: str
    temperature: float
    # Requests that a pass verifies at most, and cache rows.
    rows: int
    pool: int
    token_ids: tuple[tuple[int, ...], ...]
    tokens: int
    seconds: float
    passes: int
    # Requests that took part in a pass, on average.
    rows_per_pass: float
    # Of all columns of left-padded rectangles, those that hold nothing.
    padding_share: float
    # Rectangles of two rows and more, and the share of them whose rows ended in one column without being moved.
    rectangles: int
    grouped_share: float
    # Spent on moving rows to the same column.
    align_seconds: float
    aligned_bytes: int
    drafted: int
    accepted: int
    draft_seconds: float
    wait_seconds: float
    compute_seconds: float
    bytes_streamed: int
    peak_memory_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / max(self.passes, 1)


@dataclass
class BatchingBench:
    """The results of one run."""

    asked: Workload
    machine: dict[str, Any] = field(default_factory=dict)
    prompt_lengths: list[int] = field(default_factory=list)
    lines: list[Batched] = field(default_factory=list)

    def first(self, temperature: float) -> Batched:
        """What the others at this temperature are compared with: the requests alone, where they ran."""
        return next(line for line in self.lines if line.temperature == temperature)

    def identical(self, line: Batched) -> tuple[int, int]:
        """How many texts are those of the first line, of how many that both have."""
        pairs = list(zip(line.token_ids, self.first(line.temperature).token_ids, strict=False))
        return sum(ids == expected for ids, expected in pairs), len(pairs)

    @property
    def differences(self) -> list[str]:
        """One line for each text that is not the one of the first line."""
        found = []
        for line in self.lines:
            first = self.first(line.temperature)
            for number, (ids, expected) in enumerate(zip(line.token_ids, first.token_ids, strict=False), 1):
                if (where := first_difference(ids, expected)) is not None:
                    place = f"{line.policy} at T={line.temperature:g}, request {number}, token {where + 1}"
                    found.append(f"{place} is not that of {first.policy}")
        return found

    def times(self, line: Batched) -> dict[str, float]:
        """How many times as fast as each line of the same temperature it is; alone runs fewer requests, so it is per token."""
        return {
            other.policy: line.tokens_per_second / other.tokens_per_second
            for other in self.lines
            if other.temperature == line.temperature and other.tokens_per_second
        }

    def to_dict(self) -> dict[str, Any]:
        lines = []
        for line in self.lines:
            same, compared = self.identical(line)
            lines.append(
                {
                    **asdict(line),
                    "tokens_per_second": line.tokens_per_second,
                    "tokens_per_pass": line.tokens_per_pass,
                    "identical": same,
                    "compared": compared,
                    "times": self.times(line),
                }
            )
        return {
            "model": self.asked.model or "demo",
            "machine": self.machine,
            "method": self.asked.method,
            "prompt_lengths": self.prompt_lengths,
            "batching": lines,
            "identical": not self.differences,
            "differences": self.differences,
        }


def compare(asked: Workload, live: Live) -> BatchingBench:
    """Run every way of batching, each with a model loaded anew, warmed up on another text, its files out of the page cache."""
    bench = BatchingBench(asked)
    for temperature in asked.temperatures:
        for way in asked.ways:
            bench.lines.append(_measured(bench, way, temperature, live))
            # The memory of one model is given back before the next is loaded.
            gc.collect()
    return bench


def cache_rows(policy: str, together: int) -> int:
    """The rows of a cache under `policy` in which a pass verifies `together` requests: more, where it has a pool."""
    chosen = policy_of(policy)
    return next((rows for rows in (together, 2 * together) if rows_together(chosen, rows) in (0, together)), together)


def _measured(bench: BatchingBench, way: str, temperature: float, live: Live) -> Batched:
    asked = bench.asked
    rows = 1 if way == ALONE else asked.rows
    policy = "ragged" if way == ALONE else way
    pool = cache_rows(policy, rows)
    what = f"{way} at T={temperature:g}"
    options = {**asked.options, "method": asked.method, "rows": pool, "policy": policy}
    params = asked.params(temperature)
    with measured_model(asked.model, what, params[0], live, **options) as llm:
        lengths = mixed_lengths(asked.requests, asked.prompt_tokens, asked.seed)
        several = mixed_prompts(llm.tokenizer, lengths)
        bench.machine, bench.prompt_lengths = llm.machine.to_dict(), lengths
        live.draw(f"{what} · {asked.requests} requests, {rows} together")
        count = asked.alone if way == ALONE else asked.requests
        line = _run(llm, several[:count], params[:count], rows)
    live.say(f"{what}: {line.tokens_per_second:.2f} tok/s")
    return replace(line, policy=way, temperature=temperature)


def _run(llm: "LLM", prompts: Sequence[Any], params: Sequence[SamplingParams], rows: int) -> Batched:
    """Run the requests, and count what they took."""
    clock, layout = llm.engine.clock, llm.engine.layout
    before, aligned, counters = replace(clock), replace(layout.alignment), llm.scheduler.counters()
    start = time.perf_counter()
    completions = llm.generate(list(prompts), list(params))
    seconds = time.perf_counter() - start
    alignment = layout.alignment.since(aligned)
    taken = llm.scheduler.counters().since(counters)
    passes = clock.passes - before.passes
    return Batched(
        policy="",
        temperature=0.0,
        rows=rows,
        pool=llm.plan.rows,
        token_ids=tuple(tuple(completion.token_ids) for completion in completions),
        tokens=sum(len(completion.token_ids) for completion in completions),
        seconds=seconds,
        passes=passes,
        rows_per_pass=(clock.rows - before.rows) / max(passes, 1),
        padding_share=alignment.padding / max(alignment.columns, 1),
        rectangles=alignment.passes,
        grouped_share=alignment.still / max(alignment.passes, 1),
        align_seconds=alignment.seconds,
        aligned_bytes=alignment.bytes,
        drafted=sum(completion.stats.drafted for completion in completions),
        accepted=sum(completion.stats.accepted for completion in completions),
        draft_seconds=taken.draft - alignment.seconds,
        wait_seconds=taken.wait,
        compute_seconds=taken.verify - taken.wait,
        bytes_streamed=taken.used,
        peak_memory_bytes=max(completion.stats.peak_memory_bytes for completion in completions),
    )
