"""How many tokens a second a continuous batch gives, by the number of rows and the policy.

    python benchmarks/batches.py MODEL --rows 1,2,4,8 --link 0.4e9
    python benchmarks/batches.py MODEL --policies ragged,eqspec,exspec --rows 8
    python benchmarks/batches.py MODEL --rows 1,8 --costs 0.02,0.002,0.2,0.006,2    # by these seconds, whatever the clock says

Each variant is a model of its own in one process, with the same endless queue of requests: prompts of 16 to 512 tokens, outputs
of 16 to 256. The variants take turns of some seconds, so that what disturbs the machine disturbs all of them. The first pass of a
turn is not counted: its ring was filled while the others ran. Every text is compared with that of the first variant.

Rows are those that a pass verifies together; a policy with a pool has twice as many cache rows. Realigning the rows of eqspec and
exspec is always timed by the clock."""

import argparse
import itertools
import json
import random
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import prompts
from real_clock import Costs, FixedCost
from understudy import LLM, SamplingParams
from understudy.advance import Advance
from understudy.drafters.pace import Pace
from understudy.drafters.search import SearchDrafter
from understudy.frontends.bench.batching import cache_rows
from understudy.rectangle import Alignment
from understudy.request import Request
from understudy.sequence import TokenSequence

# Tokens of the shortest and the longest prompt, and of the shortest and the longest output.
PROMPTS = (16, 512)
OUTPUTS = (16, 256)


@dataclass
class Pass:
    """What one pass gave."""

    seconds: float
    draft: float
    wait: float
    # Requests it served, how many of them were reading their prompts, and the tokens and nodes of all of them.
    rows: int
    reading: int
    tokens: int
    nodes: int
    # Spent on moving rows until they end in one column.
    realign: float


@dataclass
class ToldPace(Pace):
    """A pace that counts the seconds of `costs` and not those of the clock."""

    costs: Costs = field(default_factory=Costs)
    # Whose trees are verified.
    drafter: SearchDrafter | None = None
    # Seconds of the levels since the latest pass.
    drafting: float = 0.0

    def record_level(self, width: int, seconds: float) -> None:
        self.drafting += self.costs.draft_level(width)

    def record_round(self, tokens: int, seconds: float) -> None:
        assert self.drafter is not None
        nodes = sum(len(tree.tokens) for tree in self.drafter.trees.values())
        super().record_round(tokens, self.drafting + self.costs.verify(nodes))

    def cost(self, width: int) -> float:
        return self.costs.draft_level(width)


@dataclass
class Variant:
    """A loaded model with its queue."""

    name: str
    llm: LLM
    queue: Iterator[Request]
    requests: list[Request] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    # The seconds of another machine, in place of the clock's.
    costs: Costs | None = None
    # What the latest pass gave.
    advances: Sequence[Advance] = ()
    told: ToldPace | None = None
    # Moving rows and padding, in the passes that count.
    alignment: Alignment = field(default_factory=Alignment)

    def __post_init__(self) -> None:
        if self.costs is not None:
            self.told = self._tell(self.costs)
        step = self.llm.engine.step

        def watched(sequences: Sequence[TokenSequence] | None = None) -> list[Advance]:
            self.advances = found = step(sequences)
            return found

        self.llm.engine.step = watched  # type: ignore[method-assign]

    def _tell(self, costs: Costs) -> ToldPace:
        """Give the drafter and the loop the seconds of `costs`."""
        drafter = self.llm.engine.drafter
        if not isinstance(drafter, SearchDrafter):
            raise SystemExit("batches: --costs is for a method that searches trees")
        cost = self.llm.engine.cost = FixedCost(costs=costs)
        policy = drafter.policy
        policy.limits = replace(policy.limits, cost=cost, filling=lambda: False)
        policy.pace = told = ToldPace(costs=costs, drafter=drafter)
        return told

    def step(self) -> Pass:
        """One pass over a queue that never ends."""
        scheduler, clock = self.llm.scheduler, self.llm.engine.clock
        while len(scheduler.waiting) < self.llm.plan.rows:
            self.requests.append(next(self.queue))
            scheduler.submit(self.requests[-1])
        ring = self.llm.model.ring
        before = clock.draft, ring.stats.wait_seconds if ring else 0.0
        realigned = self.llm.engine.layout.alignment.seconds
        start = time.perf_counter()
        scheduler.step()
        seconds = time.perf_counter() - start
        realign = self.llm.engine.layout.alignment.seconds - realigned
        draft = clock.draft - before[0] - realign
        waited = (ring.stats.wait_seconds if ring else 0.0) - before[1]
        nodes = sum(advance.nodes for advance in self.advances)
        if self.told is not None:
            draft, self.told.drafting, waited = self.told.drafting, 0.0, 0.0
            seconds = draft + self.told.costs.verify(nodes) + realign
        return Pass(
            seconds,
            draft,
            waited,
            len(self.advances),
            sum(advance.reads for advance in self.advances),
            sum(len(advance.tokens) for advance in self.advances),
            nodes,
            realign,
        )

    def turn(self, seconds: float) -> None:
        """Passes for so many seconds. By the clock the first is not counted."""
        if self.told is None:
            self.step()
        before = replace(self.llm.engine.layout.alignment)
        left = seconds
        while left > 0:
            self.passes.append(self.step())
            left -= self.passes[-1].seconds
        self.alignment = self.alignment.plus(self.llm.engine.layout.alignment.since(before))


def workload(llm: LLM, temperature: float) -> Iterator[Request]:
    """The same requests for everybody, one after another, for ever."""
    draw = random.Random(0)
    for number in itertools.count():
        size, count = (round(2 ** draw.uniform(*(x.bit_length() - 1 for x in ends))) for ends in (PROMPTS, OUTPUTS))
        first = number % len(prompts.TEXTS)
        # No two begin alike, so that no text is copied.
        text = "\n".join((f"# {number}", *prompts.TEXTS[first:], *prompts.TEXTS[:first]))
        params = SamplingParams(temperature, seed=number, max_new_tokens=count, ignore_eos=True)
        yield llm.request(llm.tokenizer.encode(text)[:size], params)


def same_texts(first: Variant, other: Variant) -> bool:
    """Do both agree, as far as both went?"""
    for one, two in zip(first.requests, other.requests, strict=False):
        length = min(len(one.sequence.tokens), len(two.sequence.tokens))
        if one.sequence.tokens[:length] != two.sequence.tokens[:length]:
            return False
    return True


def summary(variant: Variant, first: Variant) -> dict[str, Any]:
    """The figures of one variant."""
    passes = variant.passes
    seconds = sum(one.seconds for one in passes)
    tokens = sum(one.tokens for one in passes)
    decoding = sum(one.rows - one.reading for one in passes)
    return {
        "variant": variant.name,
        "tokens_per_second": tokens / seconds,
        "passes": len(passes),
        "pass_seconds": statistics.median(one.seconds for one in passes),
        "rows_per_pass": sum(one.rows for one in passes) / len(passes),
        "reading_per_pass": sum(one.reading for one in passes) / len(passes),
        "nodes_per_pass": sum(one.nodes for one in passes) / len(passes),
        "tokens_per_pass": tokens / len(passes),
        "tokens_per_row": tokens / max(decoding, 1),
        "draft_share": sum(one.draft for one in passes) / seconds,
        "wait_share": sum(one.wait for one in passes) / seconds,
        "realign_share": sum(one.realign for one in passes) / seconds,
        "padding_share": variant.alignment.padding / max(variant.alignment.columns, 1),
        "grouped_share": variant.alignment.still / max(variant.alignment.passes, 1),
        "same": same_texts(first, variant),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a table for RESULTS.md."""
    lines = [
        "| variant | tok/s | x first | s a pass | rows | of them reading | nodes | tokens a pass | a row | draft | wait "
        "| realign | padding | grouped | same |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["tokens_per_second"] / rows[0]["tokens_per_second"]
        cells = [row["variant"], f"{row['tokens_per_second']:.1f}", f"{ratio:.2f}", f"{row['pass_seconds']:.2f}"]
        cells += [f"{row[name]:.1f}" for name in ("rows_per_pass", "reading_per_pass", "nodes_per_pass")]
        cells += [f"{row[name]:.1f}" for name in ("tokens_per_pass", "tokens_per_row")]
        cells += [f"{row[name]:.0%}" for name in ("draft_share", "wait_share")]
        cells += [f"{row['realign_share']:.1%}", f"{row['padding_share']:.0%}", f"{row['grouped_share']:.0%}"]
        cells.append("yes" if row["same"] else "NO")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens a second of a continuous batch, by rows and policy.")
    parser.add_argument("model", nargs="?", help="default: the built-in model")
    parser.add_argument("--rows", default="1,2,4,8", help="rows of each variant")
    parser.add_argument("--policies", default="ragged")
    parser.add_argument("--method", default="substitute")
    parser.add_argument("--memory", help="of each variant")
    parser.add_argument("--resident", default="none")
    parser.add_argument("--link", type=float, default=0.0, help="bytes/s (0: as fast as it is)")
    parser.add_argument("--costs", help="seconds of a level, of a node in it, of a pass, of a node in it, of its weights to come")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=40.0, help="counted for each variant, about")
    parser.add_argument("--turn", type=float, default=8.0, help="seconds of a turn")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    warnings.simplefilter("ignore")
    options = {"memory": given.memory, "resident": given.resident, "method": given.method, "throttle": given.link, "context": 768}
    variants = []
    for policy, rows in itertools.product(given.policies.split(","), map(int, given.rows.split(","))):
        llm = LLM(given.model, policy=policy, rows=cache_rows(policy, rows), **options)
        costs = given.costs and Costs.of(given.costs)
        variants.append(Variant(f"{policy} {rows}", llm, workload(llm, given.temperature), costs=costs))
    turns = max(1, round(given.seconds / given.turn))
    for variant in [variant for _ in range(turns) for variant in variants]:
        variant.turn(given.seconds / turns)
    found = [summary(variant, variants[0]) for variant in variants]
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if not all(row["same"] for row in found):
        raise SystemExit("THE TEXTS DIFFER.")


if __name__ == "__main__":
    main()
