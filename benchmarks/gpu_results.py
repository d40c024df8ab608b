"""All that `gpu_check` knows so far, on disk at any moment."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_rows import Run, Size
from gpu_table import disagreement, goals

Row = dict[str, Any]


@dataclass
class Results:
    """All that is known so far. It is in `file` at any moment."""

    size: Size
    file: Path | None
    began: float = field(default_factory=time.monotonic)
    machine: Row = field(default_factory=dict)
    # Seconds of what is made before anything is measured.
    made: dict[str, float] = field(default_factory=dict)
    exactness: dict[str, Row] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    # What was not done, and why.
    cut: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def end(self) -> float:
        """When nothing is begun any more, by the monotonic clock."""
        return self.began + self.size.seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    @property
    def wrong(self) -> list[str]:
        return [what for what, found in self.exactness.items() if found["trouble"]] + disagreement(self.rows)

    def checked(self, what: str, trouble: str, seconds: float) -> None:
        self.exactness[what] = {"trouble": trouble, "seconds": seconds}
        print(f"{'WRONG' if trouble else 'ok   '}  {what}, {seconds:.1f} s{': ' + trouble if trouble else ''}", flush=True)
        self.write()

    def was_made(self, what: str, seconds: float) -> None:
        self.made[what] = seconds
        print(f"made   {what}: {seconds:.1f} s", flush=True)
        self.write()

    def measured(self, run: Run, figures: Row) -> None:
        row = next((row for row in self.rows if row["run"]["short"] == run.short), None)
        if row is None:
            row = {"run": asdict(run)}
            self.rows.append(row)
        row |= figures
        if rate := figures.get("tokens_per_second"):
            print(f"{self.seconds:5.0f} s  {run.name}: {rate:.2f} tokens/s", flush=True)
        elif "error" in figures:
            print(f"{self.seconds:5.0f} s  {run.name}: {figures['error']}", flush=True)
        self.write()

    def cut_short(self, why: str) -> None:
        self.cut.append(why)
        print(why, flush=True)
        self.write()

    def figures(self) -> Row:
        return {
            "size": asdict(self.size), "machine": self.machine, "made": self.made, "exactness": self.exactness, "rows": self.rows,
            "goals": goals(self.rows), "wrong": self.wrong, "seconds": self.seconds, "cut": self.cut,
        }  # fmt: skip

    def write(self) -> None:
        dump(self.figures(), self.file)


def dump(figures: Row, file: Path | None) -> None:
    """Write `figures` to `file`, whole or not at all."""
    if file is not None:
        partial = file.with_name(file.name + ".partial")
        partial.write_text(json.dumps(figures, indent=1) + "\n")
        partial.replace(file)
