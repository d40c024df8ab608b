"""Bits where they help most: a quantiser for each weight, so that all together take a given number of bits on average.

`mixed:bits=3.5` is a recipe, not a quantiser: 3.5 bits are what the weights' codes and scales take in memory, divided
by the number of weights. Each Linear begins with the fewest bits, or all with the same; the next ones go where they
lessen the error most for each byte. The error is that of a Linear's output, relative, squared; a block's Linears share
what a block adds to the residual stream, the head sees all of it, so it counts as much as a third of them."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..registry import build
from . import fitting

# Relative squared errors of normally distributed weights, to foretell a mix before any weight is read.
CHOICES = {"int2:group=64": 0.107, "int3": 0.0286, "int4": 0.0069, "int8": 0.0001}
HEAD = 1 / 3

Shape = tuple[int, int]
# relative squared errors of one Linear, by quantiser
Errors = Mapping[str, float]


class Mixed:
    """`calibrated` is a checksum of the text whose activations weigh the errors; empty: all inputs count alike."""

    def __init__(self, *, bits: float = 3.5, calibrated: str = "") -> None:
        if not 2 <= bits <= 16:
            raise UsageError(f"mixed: bits must be between 2 and 16, got {bits:g}.")
        self.bits, self.calibrated = bits, calibrated
        self.name = f"mixed:bits={bits:g}" + f",calibrated={calibrated}" * bool(calibrated)

    def choose(self, shapes: Sequence[Shape], errors: Sequence[Errors]) -> list[str]:
        """A quantiser for each Linear, the head last. UsageError if even the smallest ones take more than `bits`."""
        sizes = [{spec: fitting(spec, *shape).size(*shape) for spec in CHOICES} for shape in shapes]
        able = [all(fitting(spec, *shape).name == spec for spec in CHOICES) for shape in shapes]
        weights = sum(rows * columns for (rows, columns), can in zip(shapes, able, strict=True) if can)
        chosen = [min(CHOICES, key=size.__getitem__) if can else "exact" for size, can in zip(sizes, able, strict=True)]
        least = sum(size[spec] for size, spec, can in zip(sizes, chosen, able, strict=True) if can)
        spare = int(weights * self.bits / 8) - least
        if spare < 0:
            raise UsageError(
                f"mixed: {self.bits:g} bits are too few: {least * 8 / weights + 0.005:.2f} is the least here."
            )
        counts = [1.0] * (len(shapes) - 1) + [max(1.0, len(shapes) * HEAD)]
        weighed = [
            _Weighed(size, {spec: count * error[spec] for spec in size} if can else {})
            for size, error, count, can in zip(sizes, errors, counts, able, strict=True)
        ]
        # What gains most a byte first is not always best: the same bits everywhere, and more where there is room, may be better.
        starts = [chosen]
        for name in CHOICES:
            same = [name if can else "exact" for can in able]
            if sum(size[name] for size, can in zip(sizes, able, strict=True) if can) <= least + spare:
                starts.append(same)
        grown = [_grown(start, weighed, least + spare) for start in starts]
        return min(grown, key=lambda mix: sum(one.errors.get(spec, 0.0) for one, spec in zip(weighed, mix, strict=True)))


@dataclass(frozen=True)
class _Weighed:
    """What each quantiser costs and gives one Linear."""

    # Bytes by quantiser.
    sizes: Mapping[str, int]
    # Errors by quantiser, times what the Linear counts; empty: there is no choice for it.
    errors: Mapping[str, float]


def _grown(start: Sequence[str], linears: Sequence[_Weighed], room: int) -> list[str]:
    """The choice `start`, whose bytes fit in `room`, bettered where that gains most a byte, as long as there is room."""
    chosen = list(start)
    spare = room - sum(one.sizes[spec] for one, spec in zip(linears, chosen, strict=True) if one.errors)

    def step(i: int) -> list[tuple[float, int, str]]:
        """The best next step of Linear i among those there is room for: what it gains a byte, negative."""
        size, error, now = linears[i].sizes, linears[i].errors, chosen[i]
        more = [spec for spec in error if 0 < size[spec] - size[now] <= spare and error[spec] < error[now]]
        return sorted(((error[s] - error[now]) / (size[s] - size[now]), i, s) for s in more)[:1]

    steps = [first for i, one in enumerate(linears) if one.errors for first in step(i)]
    heapq.heapify(steps)
    while steps:
        _, i, spec = heapq.heappop(steps)
        cost = linears[i].sizes[spec] - linears[i].sizes[chosen[i]]
        if cost <= spare:
            chosen[i], spare = spec, spare - cost
        for following in step(i):
            heapq.heappush(steps, following)
    return chosen


def mixed(spec: str) -> Mixed | None:
    """The mix that `spec` names; None where it names a quantiser."""
    if spec.partition(":")[0] != "mixed":
        return None
    recipe: Mixed = build("recipe", {"mixed": "understudy.quantizers.mixed:Mixed"}, spec)
    return recipe


def foretold(spec: str, shapes: Sequence[Shape]) -> list[str]:
    """A quantiser for each Linear: the one named, or what a mix would choose if all weights were alike."""
    recipe = mixed(spec)
    return [spec] * len(shapes) if recipe is None else recipe.choose(shapes, [CHOICES] * len(shapes))
