"""What a batch job is, whatever answers it: lines that have no record yet, and what came of those of this run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..api.settings import AnswerSettings
from .ledger import Output
from .records import tokens_of


@dataclass
class BatchJob:
    """The lines of `input` that `output` has no record of; each model that answers them has `window` of them at a time.

    `told` is called whenever a line is done."""

    settings: AnswerSettings
    input: BinaryIO
    output: Output
    window: int
    told: Callable[[], None] = lambda: None
    # Tokens that were generated for the records of this run.
    tokens: int = 0
    # Fields that change nothing and that some body has.
    ignored: set[str] = field(default_factory=set)

    def keep(self, record: dict[str, Any]) -> None:
        """Write the record of a line, and tell of it."""
        self.tokens += tokens_of(record)
        self.output.append(record)
        self.told()
