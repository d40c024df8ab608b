"""Compares the speed that plans expect with the speed that is reached, over random small configurations.

    python benchmarks/predicted.py --configurations 30 --json predicted.json

What a text gives (how often its tokens are guessed) is read off one reference run of each copy; all else is foretold: levels,
passes, the link, residents and budgets. Every configuration runs in a process of its own, so that `--memory` holds. A killed run
goes on: configurations that the file has already are not run again."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GOAL = 0.15
PROMPT = "import os\nimport sys\n\n\ndef main(argv):\n    "
TOKENS = 96
# The copies of which a reference run tells what a text gives.
REFERENCE_METHOD = "substitute"
MIB = 1 << 20


@dataclass(frozen=True)
class Configuration:
    """One way to run a model."""

    model: str
    method: str
    bits: int
    codec: str
    resident: str
    # MiB above the smallest budget; 0: as much as there is.
    room: int
    context: int
    # Bytes per second of the disk; 0: as fast as it is.
    throttle: int

    @property
    def name(self) -> str:
        """What its record is called."""
        return " ".join(str(value) for value in asdict(self).values())

    @classmethod
    def random(cls, model: str, chance: random.Random) -> Configuration:
        return cls(
            model=model,
            method=chance.choice(("substitute", "substitute", "none")),
            bits=chance.choice((4, 4, 3)),
            codec=chance.choice(("delta", "raw")),
            resident=chance.choice(("auto", "none", "residual")),
            room=chance.choice((8, 40, 120, 0)),
            context=chance.choice((256, 512, 1024)),
            throttle=chance.choice((0, 50_000_000, 200_000_000)),
        )

    def options(self) -> dict[str, Any]:
        """Keywords of LLM, but for the memory."""
        return {
            "method": self.method, "bits": self.bits, "codec": self.codec, "resident": self.resident, "rows": 1,
            "context": self.context, "throttle": float(self.throttle), "generation_config": "none",
        }  # fmt: skip


def run(configuration: Configuration, text: dict[str, float] | None) -> dict[str, Any]:
    """In a process of its own: what the plan expects, given what the `text` gives, and what is reached."""
    from understudy import LLM, SamplingParams
    from understudy.plan.rounds import Drafting, expected
    from understudy.yardstick import measured

    options = configuration.options()
    model = None if configuration.model == "demo" else configuration.model
    if configuration.room:
        least = LLM.plan_only(model, **options).least_bytes
        # What compiling kernels leaves behind in a process counts too.
        options["memory"] = least + (configuration.room + 16) * MIB
    with LLM(model, **options) as llm:
        arithmetic = measured(llm.options.cache)
        drafting = Drafting(**text) if text and configuration.method != "none" else None
        foretold = expected(llm.plan, arithmetic, drafting)
        params = SamplingParams(temperature=0, max_new_tokens=TOKENS, ignore_eos=True)
        llm.generate(PROMPT, params)
        taken = []
        for _ in range(3):
            llm.settle()
            taken.append(llm.generate(PROMPT, params)[0].stats)
        stats = sorted(taken, key=lambda one: one.tokens_per_second)[1]
        return {
            "predicted": foretold.tokens_per_second, "levels": foretold.levels, "tokens": foretold.tokens,
            "draft_seconds": foretold.draft_seconds, "pass_seconds": foretold.pass_seconds,
            "reached": stats.tokens_per_second, "reached_levels": stats.levels_per_round, "reached_tokens": stats.mean_accepted,
            "reached_draft_seconds": stats.draft_seconds / stats.rounds,
            "reached_pass_seconds": (stats.decode_seconds - stats.draft_seconds) / stats.rounds,
            "nodes": stats.drafted / stats.rounds,
            "agreed": sum(stats.agreed.values()) / max(stats.levels_per_round * stats.rounds, 1),
            "streamed": llm.plan.streamed_bytes, "budget": llm.plan.budget_bytes,
        }  # fmt: skip


def alone(configuration: Configuration, text: dict[str, float] | None) -> dict[str, Any]:
    """`run` in a process of its own."""
    words = [sys.executable, __file__, "--one", json.dumps(asdict(configuration)), "--text", json.dumps(text)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"predicted: {configuration.name}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def text_of(model: str, bits: int) -> dict[str, float]:
    """What the text gives a copy of so many bits, by a run with everything in memory."""
    from understudy.plan.rounds import Drafting

    found = alone(Configuration(model, REFERENCE_METHOD, bits, "delta", "auto", 0, 512, 0), None)
    reach = 1 + found["agreed"]
    drafting = Drafting.seen(found["reached_tokens"], found["reached_levels"], found["nodes"], reach)
    return {"agrees": drafting.agrees, "reach": drafting.reach}


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each configuration, and how many reach the goal."""
    lines = [f"{'expected':>9} {'reached':>9} {'off':>6}  configuration"]
    errors = []
    for name, row in rows.items():
        error = row["predicted"] / row["reached"] - 1
        errors.append(abs(error))
        lines.append(f"{row['predicted']:9.2f} {row['reached']:9.2f} {error:+6.0%}  {name}")
    within = sum(error <= GOAL for error in errors)
    middle = statistics.median(errors) if errors else 0.0
    return [*lines, f"{within} of {len(errors)} within {GOAL:.0%}; median {middle:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--configurations", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("predicted.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--text", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run(Configuration(**json.loads(given.one)), json.loads(given.text))))
        return
    known: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {"texts": {}, "rows": {}}
    chance = random.Random(given.seed)
    wanted = [Configuration.random(given.model, chance) for _ in range(given.configurations)]
    for configuration in dict.fromkeys(wanted):
        key = f"{configuration.model} {configuration.bits}"
        if key not in known["texts"]:
            known["texts"][key] = text_of(configuration.model, configuration.bits)
        if configuration.name not in known["rows"]:
            start = time.monotonic()
            known["rows"][configuration.name] = alone(configuration, known["texts"][key])
            print(f"{configuration.name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        given.json.write_text(json.dumps(known, indent=1) + "\n")
    print("\n".join(table({one.name: known["rows"][one.name] for one in dict.fromkeys(wanted)})))


if __name__ == "__main__":
    main()
