"""Compares the speed that plans expect with the speed that is reached, over random small configurations.

    python benchmarks/predicted.py --configurations 30 --json predicted.json

What a text gives (tokens by how much is drafted) is read off reference runs of each copy, with everything in memory and over slow
links; all else is foretold: how much is drafted, levels, passes, the link, residents and budgets.

Every configuration runs in a process of its own, so that `--memory` holds. The machine's arithmetic is measured before and after
its runs. Where the two differ, or the process waited for a processor, the machine was disturbed: the configuration is run again, up
to `--tries` times, and what stays disturbed does not count. A killed run goes on: what the file has already, undisturbed, is not
run again."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import prompts

GOAL = 0.15
# Shapes of drafts that were measured, as `DraftShape` has them.
Text = list[dict[str, float]]
# Of each text, drafted and plain: several that follow one another at once, so that the link is not ahead when one begins. They are
# sampled, since a small model's greedy texts repeat themselves after a while.
TEMPERATURE, TOKENS, PLAIN_TOKENS, TEXTS = 0.6, 256, 12, 3
# Reference runs tell what a text gives: with everything in memory, and with all weights streamed at so many bytes per second (0: as
# fast as they come), which makes drafts longer.
REFERENCE_METHOD = "substitute"
REFERENCE_LINKS = (0, 100_000_000, 25_000_000)
MIB = 1 << 20
# A machine is disturbed where its speeds before and after differ by more, or where threads wait longer for a processor than this
# share of the time.
CHANGED = 0.1
WAITED = 0.05
# The speeds that are compared.
SPEEDS = ("copy_rate", "rebuilt_rate", "plain_rate")


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
            context=chance.choice((512, 768, 1024)),
            throttle=chance.choice((0, 50_000_000, 200_000_000)),
        )

    def options(self) -> dict[str, Any]:
        """Keywords of LLM, but for the memory."""
        return {
            "method": self.method, "bits": self.bits, "codec": self.codec, "resident": self.resident, "rows": 1,
            "context": self.context, "throttle": float(self.throttle), "generation_config": "none",
        }  # fmt: skip


def waiting_seconds() -> float:
    """How long this thread has waited for a processor so far, by the kernel's count; 0 where it keeps none."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (FileNotFoundError, IndexError):
        return 0.0


def between(before: Any, after: Any) -> Any:
    """The `Arithmetic` in the middle of two."""
    pairs = zip(asdict(before).items(), asdict(after).values(), strict=True)
    return type(before)(**{name: (first + second) / 2 for (name, first), second in pairs})


def changed(before: Any, after: Any) -> float:
    """By how much the speeds of two `Arithmetic`s differ at most, as a share."""
    return max(abs(getattr(before, name) / getattr(after, name) - 1) for name in SPEEDS)


def quiet(row: dict[str, Any]) -> bool:
    """Was the machine left alone while `row` was measured?"""
    known = "waited" in row and "changed" in row
    return known and row["waited"] <= WAITED and row["changed"] <= CHANGED


def run(configuration: Configuration, text: Text | None, known: dict[str, float] | None) -> dict[str, Any]:
    """In a process of its own: what the plan expects, given what the `text` gives, and what is reached. known: the machine's
    arithmetic just before, if it was measured."""
    from understudy import LLM, SamplingParams
    from understudy.plan.drafts import DraftShape, SeenDrafts
    from understudy.plan.rounds import Arithmetic, expected
    from understudy.yardstick import measure

    options = configuration.options()
    model = None if configuration.model == "demo" else configuration.model
    if configuration.room:
        least = LLM.plan_only(model, **options).least_bytes
        # What compiling kernels leaves behind in a process counts too.
        options["memory"] = least + (configuration.room + 16) * MIB
    before = measure() if known is None else Arithmetic(**known)
    with LLM(model, **options) as llm:
        drafts = SeenDrafts.of([DraftShape(**point) for point in text]) if text and configuration.method != "none" else None
        tokens = PLAIN_TOKENS if configuration.method == "none" else TOKENS
        asked = [
            (text, SamplingParams(temperature=TEMPERATURE, seed=seed, max_new_tokens=tokens, ignore_eos=True))
            for seed, text in enumerate(prompts.TEXTS[:TEXTS])
        ]
        llm.generate(*asked[-1])
        start, waited = time.perf_counter(), waiting_seconds()
        taken = [llm.generate(*text)[0].stats for text in asked]
        waited = (waiting_seconds() - waited) / (time.perf_counter() - start)
        after = measure()
        foretold = expected(llm.plan, between(before, after), drafts)
        rounds = sum(stats.rounds for stats in taken)
        levels = sum(stats.levels for stats in taken)
        seconds = sum(stats.decode_seconds for stats in taken)
        drafting_seconds = sum(stats.draft_seconds for stats in taken)
        return {
            "predicted": foretold.tokens_per_second, "levels": foretold.shape.levels, "tokens": foretold.shape.tokens,
            "predicted_nodes": foretold.shape.nodes, "draft_seconds": foretold.draft_seconds, "pass_seconds": foretold.pass_seconds,
            "reached": sum(stats.new_tokens - 1 for stats in taken) / seconds, "reached_levels": levels / rounds,
            "reached_tokens": sum(stats.mean_accepted * stats.rounds for stats in taken) / rounds,
            "reached_draft_seconds": drafting_seconds / rounds, "reached_pass_seconds": (seconds - drafting_seconds) / rounds,
            "nodes": sum(stats.drafted for stats in taken) / rounds,
            "level_nodes": sum(stats.level_nodes for stats in taken) / max(levels, 1),
            "streamed": llm.plan.streamed_bytes, "budget": llm.plan.budget_bytes,
            "waited": waited, "changed": changed(before, after), "arithmetic": asdict(after),
        }  # fmt: skip


def alone(configuration: Configuration, text: Text | None, known: dict[str, float] | None = None) -> dict[str, Any]:
    """`run` in a process of its own."""
    words = [sys.executable, __file__, "--one", json.dumps([asdict(configuration), text, known])]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"predicted: {configuration.name}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def text_of(model: str, bits: int) -> Text:
    """What the text gives a copy of so many bits, by reference runs."""
    first = Configuration(model, REFERENCE_METHOD, bits, "delta", "residual", 0, 512, 0)
    runs = [first, *(replace(first, resident="none", throttle=link) for link in REFERENCE_LINKS)]
    found = [alone(one, None) for one in runs]
    names = {"levels": "reached_levels", "level_nodes": "level_nodes", "nodes": "nodes", "tokens": "reached_tokens"}
    points = [{name: one[key] for name, key in names.items()} for one in found]
    return sorted(points, key=lambda point: point["levels"])


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each configuration, and how many reach the goal."""
    lines = [f"{'expected':>9} {'reached':>9} {'off':>6}  configuration"]
    errors = []
    for name, row in rows.items():
        error = row["predicted"] / row["reached"] - 1
        if quiet(row):
            errors.append(abs(error))
        lines.append(f"{row['predicted']:9.2f} {row['reached']:9.2f} {error:+6.0%}  {name}{'' if quiet(row) else ' (disturbed)'}")
    within = sum(error <= GOAL for error in errors)
    middle = statistics.median(errors) if errors else 0.0
    told = f"{within} of {len(errors)} within {GOAL:.0%}; median {middle:.0%}"
    return [*lines, f"{told}; {len(rows) - len(errors)} more were disturbed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--configurations", type=int, default=30)
    parser.add_argument("--tries", type=int, default=3, help="runs of a configuration at most, while the machine is disturbed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("predicted.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        configuration, text, arithmetic = json.loads(given.one)
        print(json.dumps(run(Configuration(**configuration), text, arithmetic)))
        return
    known: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {"texts": {}, "rows": {}}
    # The machine's arithmetic, once it was measured.
    before: dict[str, float] | None = None
    chance = random.Random(given.seed)
    wanted = [Configuration.random(given.model, chance) for _ in range(given.configurations)]
    for configuration in dict.fromkeys(wanted):
        key = f"{configuration.model} {configuration.bits}"
        if key not in known["texts"]:
            known["texts"][key] = text_of(configuration.model, configuration.bits)
        for _ in range(given.tries):
            if quiet(known["rows"].get(configuration.name, {})):
                break
            start = time.monotonic()
            found = alone(configuration, known["texts"][key], before)
            known["rows"][configuration.name] = found
            before = found["arithmetic"]
            told = "quiet" if quiet(found) else f"disturbed: waited {found['waited']:.0%}, speeds changed {found['changed']:.0%}"
            print(f"{configuration.name}: {time.monotonic() - start:.0f} s, {told}", file=sys.stderr)
            given.json.write_text(json.dumps(known, indent=1) + "\n")
    print("\n".join(table({one.name: known["rows"][one.name] for one in dict.fromkeys(wanted)})))


if __name__ == "__main__":
    main()
