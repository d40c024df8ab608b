"""What a grammar costs: the same prompts and tokens with a grammar and without, in turns, in one process.

    python benchmarks/grammar.py MODEL --memory 3.4GB --new-tokens 64 --rounds 3 --json out.json

Three grammars admit any text, so that both write the same tokens, which is looked at: `any` is one regular expression, `words`
parses each word, `tools` is what strict tools make of a reply. A ratio is the median over rounds and prompts of the ratio within a
turn of both, which take the lead by turns. `schema` holds the text to JSON, which nothing free would be: of it only the share of
time is told that the grammar took, which is told of all."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prompts

# Tokens a second that a grammar may cost, as a share.
GOAL = 0.05
FREE = "free"
WORDS = r"""start: (WORD | NUMBER | SPACE | OTHER)*
WORD: /[A-Za-z_]+/
NUMBER: /[0-9]+/
SPACE: /[ \t\r\n]+/
OTHER: /[^A-Za-z_0-9 \t\r\n]/
"""
LINE = {"type": "object", "properties": {"text": {"type": "string"}, "number": {"type": "integer"}}, "required": ["text", "number"]}
SCHEMA = {"type": "array", "items": {**LINE, "additionalProperties": False}, "minItems": 99}


class Watch:
    """Seconds that grammars take in the thread that generates, and the places that they are asked about."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.places = 0

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Watch all grammars meanwhile."""
        from understudy.grammar import GrammarState

        kept = {name: getattr(GrammarState, name) for name in ("allowed", "take")}
        # `take` asks what is allowed itself.
        inside = False

        def watched(name: str) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                nonlocal inside
                if inside:
                    return kept[name](*arguments)
                inside, start = True, time.perf_counter()
                try:
                    return kept[name](*arguments)
                finally:
                    inside = False
                    self.seconds += time.perf_counter() - start
                    self.places += name == "allowed"

            return call

        for name in kept:
            setattr(GrammarState, name, watched(name))
        try:
            yield self
        finally:
            for name, own in kept.items():
                setattr(GrammarState, name, own)


def forms(tokenizer: Any) -> dict[str, Any]:
    """The constraints by name."""
    from understudy import Constraint
    from understudy.api.enforced import Thought
    from understudy.api.messages import ToolUse
    from understudy.api.strict_calls import strict_reply
    from understudy.replies.families import HERMES
    from understudy.replies.format import START, ReplyFormat

    tools = [{"type": "function", "function": {"name": name, "parameters": LINE}} for name in ("read", "write", "search")]
    use = ToolUse(tools, strict=frozenset(["read", "write", "search"]))
    return {
        "any": Constraint.regex("(?s:.*)"),
        "words": Constraint.grammar(WORDS),
        "tools": strict_reply(tokenizer, ReplyFormat(HERMES.fields, START, tools), use, Thought(), None),
        "schema": Constraint.json_schema(SCHEMA),
    }


def turn(llm: Any, prompt: list[int], constraint: Any, count: int, temperature: float) -> dict[str, Any]:
    """One text: its tokens, the seconds after the first of them, and what its grammar took of these."""
    from understudy import SamplingParams

    params = SamplingParams(max_new_tokens=count, temperature=temperature, seed=1, ignore_eos=True, constraint=constraint)
    llm.settle()
    with Watch().on() as watch:
        (done,) = llm.generate([prompt], params)
    stats = done.stats
    found = {"token_ids": done.token_ids, "decode_seconds": stats.decode_seconds, "tokens_per_pass": stats.mean_accepted}
    return found | {"passes": stats.rounds, "grammar_seconds": watch.seconds, "places": watch.places}


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each form, round and prompt: a turn with its grammar, and one without just before or after it."""
    from understudy import LLM

    chosen = {name: getattr(given, name) for name in ("memory", "resident", "method", "context")}
    options = {name: value for name, value in chosen.items() if value is not None}
    rows = []
    with LLM(None if given.model == "demo" else given.model, rows=1, generation_config="none", **options) as llm:
        texts = prompts.prompts(llm.tokenizer, given.prompt_tokens, given.prompts)
        known = {name: own for name, own in forms(llm.tokenizer).items() if name in given.forms.split(",")}
        # What is compiled once is no part of a turn.
        for constraint in (None, *known.values()):
            turn(llm, texts[0], constraint, 8, given.temperature)
        for number in range(given.rounds):
            for place, prompt in enumerate(texts):
                for name, constraint in known.items():
                    order = (None, constraint) if (number + place) % 2 else (constraint, None)
                    both = [turn(llm, prompt, own, given.new_tokens, given.temperature) for own in order]
                    free, held = both if order[0] is None else both[::-1]
                    rows.append({"form": name, "round": number, "prompt": place, "free": free, "held": held})
                    print(f"{number} {place} {name}: {speed(held) / speed(free):.3f} of {speed(free):.2f} tok/s", file=sys.stderr)
    return rows


def speed(run: dict[str, Any]) -> float:
    """Tokens a second after the first one."""
    return (len(run["token_ids"]) - 1) / run["decode_seconds"]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each form costs, by all of its turns."""
    found = []
    for name in dict.fromkeys(row["form"] for row in rows):
        turns = [row for row in rows if row["form"] == name]
        ratios = [speed(row["held"]) / speed(row["free"]) for row in turns]
        held = [row["held"] for row in turns]
        seconds, places = sum(one["grammar_seconds"] for one in held), sum(one["places"] for one in held)
        paired = all(row["held"]["token_ids"] == row["free"]["token_ids"] for row in turns)
        found.append({
            "form": name, "turns": len(turns), "paired": paired,
            "free": statistics.median(speed(row["free"]) for row in turns),
            "held": statistics.median(map(speed, held)),
            "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            "tokens_per_pass": statistics.median(one["tokens_per_pass"] for one in held),
            "place_microseconds": 1e6 * seconds / max(places, 1),
            "share": seconds / sum(one["decode_seconds"] for one in held),
        })  # fmt: skip
    return found


def table(found: list[dict[str, Any]]) -> str:
    """A line for each form; of one whose tokens are others there is no ratio."""
    lines = [
        "| grammar | turns | tok/s without | with | ratio (least, most) | tokens per pass | us a node | share of time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        ratio = f"{one['ratio']:.3f} ({one['least']:.2f}, {one['most']:.2f})" if one["paired"] else "other tokens"
        speeds = f"{one['free']:.2f} | {one['held']:.2f} | {ratio} | {one['tokens_per_pass']:.1f}"
        lines.append(f"| {one['form']} | {one['turns']} | {speeds} | {one['place_microseconds']:.0f} | {one['share']:.2%} |")
    return "\n".join(lines)


def verdict(found: list[dict[str, Any]]) -> str:
    """Whether the goal was reached: by ratios where tokens are the same, else by the share of time."""
    costs = {one["form"]: 1 - one["ratio"] if one["paired"] else one["share"] for one in found}
    worst = max(costs, key=lambda name: costs[name])
    return f"{'within' if costs[worst] <= GOAL else 'ABOVE'} {GOAL:.0%}: {worst} costs most, {costs[worst]:.1%} of tokens/s"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a checkpoint or a prepared model; demo: the built-in one")
    parser.add_argument("--forms", default="any,words,tools,schema")
    parser.add_argument("--memory")
    parser.add_argument("--resident")
    parser.add_argument("--method")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    rows = measure(given)
    if given.json:
        given.json.write_text(json.dumps(rows) + "\n")
    found = summary(rows)
    print(table(found))
    print(verdict(found))
    wrong = [one["form"] for one in found if not one["paired"] and one["form"] != "schema"]
    if wrong:
        raise SystemExit(f"grammar: {', '.join(wrong)} admit any text, and the tokens were others")


if __name__ == "__main__":
    main()
