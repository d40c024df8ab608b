"""A trained head in front of the 4-bit copy against guesses from the text alone, in turns, in one process.

    python benchmarks/head_in_front.py MODEL --head eagle:HEAD --prompts 1 --new-tokens 64 --temperatures 0,0.6

Each prompt of real_prompts.py is answered by both ways, one right after the other and every second time in the other order, so that
what disturbs the machine disturbs both. Texts must be the same. The ratio of tokens per second is that of both ways' sums; beside
it stands the median of the prompts' own ratios.

By the clock, the model that is loaded second may be slower for being second: compare speeds in processes of their own too.

--no-clock: drafters are told the seconds of --costs, so trees and levels are the same in every run on any machine, however busy."""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import real_prompts
from real_clock import Costs, Watched
from understudy import LLM, SamplingParams

WARM_UP = "Say hello."
NAMES = ("text alone", "head in front")


@dataclass(frozen=True)
class Told:
    """What one way took for one answer."""

    tokens: tuple[int, ...]
    # Of the rounds after the one that read the prompt, and of their drafts; by the clock, or by told costs.
    seconds: float
    drafting: float
    rounds: int
    levels: float
    suggested: dict[str, int]
    agreed: dict[str, int]


class Way:
    """One way of drafting, loaded."""

    def __init__(self, given: argparse.Namespace, method: str):
        options: dict[str, Any] = {"method": method, "codec": given.codec, "resident": given.resident, "context": given.context}
        if given.memory:
            options["memory"] = given.memory
        self.llm = LLM(given.model, generation_config="none", **options)
        self.watched = None
        if given.no_clock:
            self.watched = self.llm.engine.drafter = Watched(self.llm.engine.drafter, Costs.of(given.costs), False)
        self.answer(WARM_UP, SamplingParams(temperature=0.0, max_new_tokens=16))

    def answer(self, prompt: str, params: SamplingParams) -> Told:
        pace = self.watched.pace if self.watched else None
        before = pace.total if pace else 0.0
        reply = self.llm.chat([{"role": "user", "content": prompt}], params)
        stats = reply.stats
        # Told costs do not say which part of a round was drafting.
        seconds, drafting = (pace.total - before, 0.0) if pace else (stats.decode_seconds, stats.draft_seconds)
        return Told(
            tuple(reply.token_ids), seconds, drafting, stats.rounds, stats.levels,
            dict(stats.suggested), dict(stats.agreed),
        )  # fmt: skip


def line(name: str, runs: Sequence[Told]) -> str:
    """A line of the table."""
    tokens = sum(len(run.tokens) - 1 for run in runs)
    rounds, levels = sum(run.rounds for run in runs), sum(run.levels for run in runs)
    seconds = sum(run.seconds for run in runs)
    said = []
    for source in ("text", "head"):
        asked = sum(run.suggested.get(source, 0) for run in runs)
        right = sum(run.agreed.get(source, 0) for run in runs)
        said.append(f"{right} of {asked}" if asked else "")
    drafting = sum(run.drafting for run in runs)
    share = f"{drafting / seconds:.0%}" if drafting else ""
    figures = f"{tokens / seconds:.2f} | {tokens / rounds:.2f} | {levels / rounds:.2f} | {levels / tokens:.3f} | {share}"
    return f"| {name} | {figures} | {said[0]} | {said[1]} |"


def table(temperature: float, pairs: Sequence[tuple[Told, Told]]) -> list[str]:
    """The lines that say what both ways took."""
    lines = [
        f"T = {temperature:g}, {len(pairs)} answers", "",
        "| | tok/s | tokens per pass | levels per round | levels per token | drafting | right from text | right from head |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [line(name, runs) for name, runs in zip(NAMES, zip(*pairs, strict=True), strict=True)]
    ratios = [first.seconds / second.seconds for first, second in pairs]
    whole = sum(first.seconds for first, _ in pairs) / sum(second.seconds for _, second in pairs)
    levels = [sum(run.levels for run in runs) / sum(run.rounds for run in runs) for runs in zip(*pairs, strict=True)]
    speed = f"tokens per second: {whole:.2f} x (median of answers {statistics.median(ratios):.2f} x)"
    return [*lines, "", f"{speed}; levels per round: {levels[1] / levels[0]:.2f} x"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A head in front of the copy against guesses from the text alone.")
    parser.add_argument("model")
    parser.add_argument("--head", required=True, help="KIND:DIR")
    parser.add_argument("--options", default="", help="further options of the method with the head, as in ,key=value")
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in text.split(",")], default=[0.0, 0.6])
    parser.add_argument("--categories", type=lambda text: tuple(text.split(",")), default=real_prompts.CATEGORIES)
    parser.add_argument("--prompts", type=int, default=1, help="prompts of each category, 1 or 2")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=3072)
    parser.add_argument("--resident", default="auto")
    parser.add_argument("--codec", default="auto")
    parser.add_argument("--memory")
    parser.add_argument("--no-clock", action="store_true")
    parser.add_argument("--costs", default="0.08,0.012,1.2,0.008,0,0.012", help="seconds as in real_clock.Costs")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    ways = [Way(given, method) for method in ("substitute", f"substitute:suggest={given.head}{given.options}")]
    for temperature in given.temperatures:
        pairs = []
        for number, prompt in enumerate(real_prompts.chosen(given.categories, given.prompts)):
            params = SamplingParams(
                temperature=temperature, top_p=1.0, top_k=0, min_p=0.0, seed=number, max_new_tokens=given.new_tokens
            )
            found: dict[int, Told] = {}
            for way in (0, 1) if number % 2 else (1, 0):
                ways[way].llm.settle()
                found[way] = ways[way].answer(prompt.messages[0], params)
            if found[0].tokens != found[1].tokens:
                raise SystemExit(f"THE TEXTS DIFFER: {prompt.category}")
            pairs.append((found[0], found[1]))
        print("\n".join(["", *table(temperature, pairs)]), flush=True)


if __name__ == "__main__":
    main()
