"""The laws that measured heads follow, beside those that the paper found (Scylla, arXiv 2505.07858)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log2
from statistics import fmean

from .cells import Accepted
from .fits import Fit, least_squares, log_line
from .passes import PassLaw

# The paper's coefficients of accepted tokens, a ln x + b, with R2 where it is known; T is in billions there.
PAPER = {"T": (0.08, 5.05, 0.89), "D": (0.74, 4.61, None)}
# The paper's width for a model of 72 billion parameters on a GPU comes near to a / b + c with these.
PAPER_WIDTH = (474.0, 7.0)


@dataclass(frozen=True)
class Law:
    """`a ln x + b` for accepted tokens of a pass. x is T, the tokens of training, or D, the decoder layers."""

    # "T" or "D".
    of: str
    # What was held fixed, such as "D = 2"; "mean": the mean over what was not.
    at: str
    points: tuple[tuple[int, float], ...]
    fit: Fit

    @property
    def formula(self) -> str:
        """Such as `A = 0.212 ln T + 1.05`."""
        slope, constant = self.fit.coefficients
        return f"A = {slope:.3g} ln {self.of} {'-' if constant < 0 else '+'} {abs(constant):.3g}"


def laws(found: Sequence[Accepted]) -> list[Law]:
    """For each kind of head: the law of T at each depth, that of D at each budget, and both on average; only where two or more
    values of x differ."""
    kinds = sorted({one.cell.kind for one in found})
    made = []
    for kind in kinds:
        own = [one for one in found if one.cell.kind == kind]
        told = [one for one in own if one.cell.tokens]
        layered = [one for one in own if one.cell.depth]
        lines = _laws("T", told, lambda one: one.cell.tokens, lambda one: one.cell.depth, "D")
        lines += _laws("D", layered, lambda one: one.cell.depth, lambda one: one.cell.tokens, "T")
        made += [replace(law, at=f"{kind}, {law.at}") for law in lines] if len(kinds) > 1 else lines
    return made


def _laws(
    name: str, found: Sequence[Accepted], place: Callable[[Accepted], int], fixed: Callable[[Accepted], int], other: str
) -> list[Law]:
    """The laws of what `place` says, one for each value of what `fixed` says."""
    lines: dict[int, dict[int, float]] = {}
    for one in sorted(found, key=lambda one: (fixed(one), place(one))):
        lines.setdefault(fixed(one), {})[place(one)] = one.tokens_per_pass
    lines = {value: line for value, line in lines.items() if len(line) > 1}
    made = [_law(name, f"{other} = {value}", line) for value, line in lines.items()]
    shared = set.intersection(*(set(line) for line in lines.values())) if lines else set()
    if len(lines) > 1 and len(shared) > 1:
        means = {x: fmean(line[x] for line in lines.values()) for x in sorted(shared)}
        made.append(_law(name, "mean", means))
    return made


def _law(name: str, at: str, line: dict[int, float]) -> Law:
    return Law(name, at, tuple(line.items()), log_line(name, list(line), list(line.values())))


@dataclass(frozen=True)
class Speed:
    """How fast texts were written together by one way of drafting, and what their passes took."""

    # The drafter's name and options.
    method: str
    # The directory of the head that drafted, "" for none, and its decoder layers.
    head: str
    depth: int
    # Texts that ran together.
    batch: int
    # Nodes of a level of a draft; 0: nothing was drafted.
    width: int
    # Tokens of all texts after their first, and the seconds of that.
    tokens: int
    seconds: float
    # All passes, those that read prompts too, and the mean texts and nodes of one.
    passes: int
    rows: float
    nodes: float
    # Nodes of one text in a pass that verified a draft, and tokens that this gave.
    verified: float
    tokens_per_pass: float
    # Seconds of all passes: drafting, arithmetic, and waiting for weights.
    draft_seconds: float
    busy_seconds: float
    wait_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all texts, a second."""
        return self.tokens / max(self.seconds, 1e-9)


def throughput(speeds: Sequence[Speed]) -> Fit | None:
    """The best tokens per second of each batch as `a log2(b) + c`; None where one batch alone was measured."""
    batches = sorted({speed.batch for speed in speeds})
    if len(batches) < 2:
        return None
    best = [max(speed.tokens_per_second for speed in speeds if speed.batch == batch) for batch in batches]
    return least_squares(("log2 b", "1"), [(log2(batch), 1.0) for batch in batches], best)


@dataclass(frozen=True)
class Advice:
    """What to use."""

    # The head's directory, its decoder layers and the tokens it saw.
    head: str
    depth: int
    tokens: int
    # Why this one.
    why: str
    # Nodes of a text in a pass, by texts that run together; empty: passes were not measured.
    widths: dict[int, int]


def advice(found: Sequence[Accepted], speeds: Sequence[Speed], law: PassLaw | None) -> Advice:
    """The head that was fastest in the smallest batch; without speeds, the one that gives most tokens a pass."""
    best = max(found, key=lambda one: one.tokens_per_pass)
    least = min((speed.batch for speed in speeds), default=0)
    drafted = [speed for speed in speeds if speed.batch == least and speed.head]
    why = f"most tokens a pass, {best.tokens_per_pass:.2f}; speeds were not measured"
    if drafted:
        fastest = max(drafted, key=lambda speed: speed.tokens_per_second)
        best = next((one for one in found if one.head == fastest.head), best)
        why = f"fastest at batch {least}, {fastest.tokens_per_second:.1f} tok/s with {fastest.tokens_per_pass:.2f} tokens a pass"
        plain = max((speed.tokens_per_second for speed in speeds if speed.batch == least and not speed.head), default=0.0)
        if plain >= fastest.tokens_per_second:
            why += f", though without a head it is {plain:.1f} tok/s"
    batches = sorted({speed.batch for speed in speeds})
    widths = {batch: round(law.width(batch)) for batch in batches} if law else {}
    return Advice(best.head, best.cell.depth, best.cell.tokens, why, widths)
