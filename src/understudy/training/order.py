"""What is to be trained, from what, and for how long: checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..plan.sizes import format_size, parse_size

# Options of an LLM that say nothing of how a Store is made. Memory and residents do: bits that are left open are chosen by them.
RUNNING = ("tier", "prefix_cache", "prefix_cache_size")
# Seeds of a training: numbers of its epochs and steps are mixed into them, within what a generator takes.
MOST_SEEDS = 2**32


def check_data(paths: Iterable[Path]) -> None:
    """Raise UsageError for a path that is no file."""
    for path in paths:
        if not path.is_file():
            raise UsageError(f"There is no file {path}: --data takes text files, and conversations in .jsonl files.")


def making(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options of loading a model that say how its Store is made."""
    return {name: value for name, value in options.items() if name not in RUNNING}


@dataclass(frozen=True)
class Order:
    """One head to be trained."""

    # The target, as for `LLM`.
    model: str | None
    # A kind of head and its options, such as "eagle:depth=2".
    head: str
    data: tuple[Path, ...]
    # A new directory for the head.
    output: Path
    # Where hidden states are kept for later trainings; None: they go when the head is done.
    dump: Path | None = None
    # A trained head of the same kind to begin with, which may have fewer decoder layers; None: begin as the paper says.
    start: Path | None = None
    # Learn from the model's own answers to the prompts of the data, and not from the data itself?
    own: bool = False
    epochs: float = 3.0
    # Tokens to learn from in all; 0: as many as there are in `epochs`.
    tokens: int = 0
    # Minutes of training; 0: as many as it takes.
    minutes: float = 0.0
    # Tokens to measure with, at most.
    measured: int = 1 << 16
    seed: int = 0
    # Tokens that the head can say; 0: all.
    draft_vocab: int = 0
    # Tokens of the longest piece of a text.
    context: int = 1024
    # Tokens of a step.
    batch_tokens: int = 2048
    # Peak learning rate; 0: the paper's, for this width.
    rate: float = 0.0
    # Further options of loading the model.
    options: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UsageError for what can be seen to be wrong before any work."""
        check_data(self.data)
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise UsageError(f"{self.output} is there already: name a new directory with -o.")
        if self.dump is not None and self.dump.resolve().is_relative_to(self.output.resolve()):
            raise UsageError(f"--dump {self.dump} lies in {self.output}, where the head goes: name a place beside it.")
        self.check_numbers()

    def check_numbers(self) -> None:
        """Raise UsageError for numbers that make no sense."""
        for name in ("epochs", "minutes", "rate"):
            value = getattr(self, name)
            if not 0 <= value < 1e6:
                raise UsageError(f"--{name} must be a number of 0 or more, got {value}.")
        if not 0 <= self.seed < MOST_SEEDS:
            raise UsageError(f"--seed must be from 0 to {MOST_SEEDS - 1}, got {self.seed}.")
        if not self.epochs and not self.tokens and not self.minutes:
            raise UsageError("--epochs 0 learns nothing: give --tokens or --minutes, or more epochs.")
        if self.context < 32:
            raise UsageError(f"--context must be 32 or more to learn from, got {self.context}.")

    @property
    def device(self) -> str:
        """Where torch trains: where the model runs, which is the processor unless an accelerator is asked for."""
        return str(self.options.get("device", "cpu")) if str(self.options.get("device", "")).startswith("cuda") else "cpu"

    def check_memory(self, needed: int) -> None:
        """Raise UsageError where training takes more than --memory."""
        budget = self.options.get("memory")
        if budget is not None and needed > parse_size(budget):
            raise UsageError(
                f"Training this head takes about {format_size(needed)}, and --memory is {format_size(parse_size(budget))}: give it"
                " more, or choose a smaller --batch-tokens, --draft-vocab or head."
            )
