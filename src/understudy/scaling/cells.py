"""Heads of several depths and token budgets, and what each was found to be worth. Every finished one has a record on disk, so a
run that was killed goes on with the next."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import UnderstudyError, UsageError
from ..training.judge import standard_error

# The file that says what a directory's cells are an answer to, and the folder of their records.
QUESTION = "scale.json"
RECORDS = "cells"


@dataclass(frozen=True)
class Cell:
    """One head to train: its kind, its decoder layers and the tokens it sees."""

    kind: str
    # 0: its kind has no decoder layers.
    depth: int
    # 0: what it learned from is not told.
    tokens: int
    # Of a head that was trained before: a digest of its files. Empty: it is to be trained.
    digest: str = ""

    @property
    def name(self) -> str:
        """What its head and its record are called on disk."""
        kind = re.sub(r"\W+", "-", self.kind)
        return "-".join([kind, f"depth{self.depth}", f"tokens{self.tokens}", *filter(None, [self.digest])])

    @property
    def spec(self) -> str:
        """What `train --head` names for it."""
        return f"{self.kind}{',' if ':' in self.kind else ':'}depth={self.depth}" if self.depth else self.kind

    @property
    def place(self) -> tuple[str, int, int]:
        """Where it stands in a study, whichever head it is."""
        return self.kind, self.depth, self.tokens


@dataclass(frozen=True)
class Accepted:
    """What a head was worth on held-out text."""

    cell: Cell
    # Its directory.
    head: str
    # Tokens that a pass gives, the bonus token included (the acceptance length).
    tokens_per_pass: float
    # The chance that the head's first token is right, that its second is where the first was, ...
    positions: tuple[float, ...]
    # Tokens of text that were guessed.
    judged: int
    # Seconds of training; 0: it was trained before.
    seconds: float = 0.0
    # By text: the tokens that its chains had right, and its chains. Empty: it was judged before that was kept.
    by_text: tuple[tuple[int, int], ...] = ()

    @property
    def error(self) -> float | None:
        """The standard error of `tokens_per_pass`; None: not known."""
        return standard_error(self.by_text)

    def over(self, other: Accepted) -> tuple[float, float | None]:
        """How many tokens more a pass gives than with `other`, judged on the same texts, and the standard error of that."""
        same = [number for _, number in self.by_text] == [number for _, number in other.by_text]
        error = standard_error(self.by_text, other.by_text) if same else None
        return self.tokens_per_pass - other.tokens_per_pass, error


def grid(kind: str, depths: Sequence[int], budgets: Sequence[int]) -> list[Cell]:
    """All cells, the cheapest first."""
    cells = [Cell(kind, depth, tokens) for depth, tokens in product(sorted(set(depths)), sorted(set(budgets)))]
    return sorted(cells, key=lambda cell: (cell.tokens, cell.depth))


class Records:
    """The records of a directory. All of them answer one question."""

    def __init__(self, directory: Path):
        self.directory = directory

    @classmethod
    def open(cls, directory: Path, question: dict[str, Any]) -> Records:
        """The records in `directory`, which is made if it is not there.

        Raises UsageError where it has answers to another question, UnderstudyError where it cannot be used."""
        try:
            (directory / RECORDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnderstudyError(f"Cannot write to {directory}: {error.strerror}.") from None
        asked = json.loads(json.dumps(question))
        path = directory / QUESTION
        if path.exists():
            for name, value in read_record(path).items():
                if asked.get(name) != value:
                    raise UsageError(
                        f"{directory} has heads measured with {name} {value}, not {asked.get(name)}: choose another directory."
                    )
            if read_record(path) == asked:
                return cls(directory)
        write_record(path, asked)
        return cls(directory)

    def find(self, name: str) -> dict[str, Any] | None:
        """The record called `name`; None: there is none yet."""
        path = self._path(name)
        return read_record(path) if path.exists() else None

    def keep(self, name: str, record: dict[str, Any]) -> None:
        """Write a record whole, or not at all."""
        write_record(self._path(name), record)

    def accepted(self, cell: Cell) -> Accepted | None:
        """What was found of `cell`, if anything was."""
        found = self.find(cell.name)
        if found is None:
            return None
        try:
            by_text = tuple(map(tuple, found.get("by_text", ())))
            return Accepted(**{**found, "cell": Cell(**found["cell"]), "positions": tuple(found["positions"]), "by_text": by_text})
        except (KeyError, TypeError):
            raise UnderstudyError(f"{self._path(cell.name)} is no record of a head: delete it to measure that again.") from None

    def keep_accepted(self, accepted: Accepted) -> None:
        """Write what was found of a head."""
        self.keep(accepted.cell.name, asdict(accepted))

    def left(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """Those of `cells` that have no record yet."""
        return (cell for cell in cells if self.find(cell.name) is None)

    def _path(self, name: str) -> Path:
        return self.directory / RECORDS / f"{name}.json"


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UnderstudyError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnderstudyError(f"{path} cannot be read ({error}): delete it to measure that again.") from None
    if not isinstance(found, dict):
        raise UnderstudyError(f"{path} is no record: delete it to measure that again.")
    return found


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a file of JSON, which appears whole, by a rename. Raises UnderstudyError where it cannot be written."""
    temporary = path.with_suffix(".partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UnderstudyError(f"Cannot write {path}: {error.strerror}.") from None
