"""All that a study of heads found, as one value: the JSON that programs read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UnderstudyError
from .cells import Accepted
from .fits import Fit
from .laws import PAPER, PAPER_WIDTH, Advice, Law, Speed, advice, laws, throughput
from .passes import PassLaw, PassSample, pass_law


@dataclass(frozen=True)
class Study:
    """What was measured, and what follows from it."""

    model: str
    found: tuple[Accepted, ...]
    speeds: tuple[Speed, ...]
    laws: tuple[Law, ...]
    # What a pass takes; None: passes were not measured, or do not tell.
    passes: PassLaw | None
    throughput: Fit | None
    advice: Advice
    # What could not be said, each in a sentence.
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> str:
        """The kinds of its heads."""
        return ", ".join(sorted({one.cell.kind for one in self.found}))

    @classmethod
    def of(
        cls, model: str, found: Sequence[Accepted], speeds: Sequence[Speed], machine: dict[str, Any] | None = None
    ) -> Study:
        """What follows from the heads that were `found` and the `speeds` that were measured.

        Raises UnderstudyError where no head was measured."""
        if not found:
            raise UnderstudyError("No head was measured: nothing follows.")
        notes = []
        lines = laws(found)
        if not lines:
            notes.append("One head says nothing of growth: a law needs two depths, or two budgets.")
        width = None
        if speeds:
            try:
                width = pass_law([_sample(speed) for speed in speeds])
            except UnderstudyError as error:
                notes.append(f"No best width is told. {error}")
        return cls(
            model=model,
            found=tuple(found),
            speeds=tuple(speeds),
            laws=tuple(lines),
            passes=width,
            throughput=throughput(speeds),
            advice=advice(found, speeds, width),
            notes=tuple(notes),
            machine=machine or {},
        )

    def to_dict(self) -> dict[str, Any]:
        """The whole as JSON has it."""
        made = asdict(self)
        made["laws"] = [{**asdict(law), "formula": law.formula, "paper": PAPER[law.of]} for law in self.laws]
        made["speeds"] = [{**asdict(speed), "tokens_per_second": speed.tokens_per_second} for speed in self.speeds]
        if self.passes is not None:
            made["passes"] |= {"width": self.passes.terms, "paper_width": PAPER_WIDTH}
        return made


def _sample(speed: Speed) -> PassSample:
    passes = max(speed.passes, 1)
    return PassSample(speed.rows, speed.nodes, speed.busy_seconds / passes, speed.wait_seconds / passes)
