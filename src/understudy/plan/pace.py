"""When to stop drafting: one more level is worth it while it is expected to give tokens faster than the loop gives them now.

The chance that a drafted token is the target's comes from what was accepted before, by the draft's own margin; the cost of a
level is measured by its width. No fixed shape (SubSpec drafts 6 x 48 always, arXiv 2509.18344)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
RANKS = 4
_PRIOR_WEIGHT = 6.0
SURE = 0.995  # no draft is surer than this before it was seen to be


@dataclass
class Calibration:
    """Chance that the target agrees, by the draft's margin between its first and second token, learned online.

    Margins are in the units of the scores whose argmax is chosen: logits when greedy, noisy scaled log p when sampling."""

    sharpness: float = 8.0
    hits: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    trials: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    ranks: list[float] = field(
        default_factory=lambda: [6.0, 2.0, 1.0, 1.0]
    )  # where first-choice misses go; the last: elsewhere

    def chances(self, scores: Sequence[float]) -> list[float]:
        """`scores` of the best children, best first -> the chance of each to be the target's choice."""
        margin = scores[0] - scores[1] if len(scores) > 1 else math.inf
        bucket = bucket_of(margin)
        prior = min(1 / (1 + math.exp(-min(self.sharpness * margin, 40.0))), SURE)
        first = (self.hits[bucket] + _PRIOR_WEIGHT * prior) / (self.trials[bucket] + _PRIOR_WEIGHT)
        total = sum(self.ranks)
        return [first, *((1 - first) * share / total for share in self.ranks[: len(scores) - 1])]

    def learn(self, bucket: int, rank: int | None) -> None:
        """The target chose the child of this rank (None: none of them) after a node in `bucket`."""
        self.trials[bucket] += 1
        self.hits[bucket] += rank == 0
        if rank != 0:
            self.ranks[len(self.ranks) - 1 if rank is None else min(rank, len(self.ranks)) - 1] += 1


def bucket_of(margin: float) -> int:
    return sum(margin >= edge for edge in EDGES)


@dataclass
class Pace:
    """Measured seconds per draft level by width, and tokens per second of the whole loop (moving averages)."""

    levels: dict[int, float] = field(default_factory=dict)
    rate: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def level(self, width: int, seconds: float) -> None:
        old = self.levels.get(width)
        self.levels[width] = seconds if old is None else 0.8 * old + 0.2 * min(seconds, 4 * old)

    def round(self, tokens: int, seconds: float) -> None:
        """The rate is a ratio of sums over about the last ten rounds."""
        self.tokens = 0.9 * self.tokens + tokens
        self.seconds = 0.9 * self.seconds + seconds
        self.rate = self.tokens / self.seconds

    def first_guess(self, sweep: float) -> None:
        """Before the first round: a sweep of the weights takes `sweep` seconds, and some eight tokens a pass are common."""
        if not self.rate:
            self.rate = 8 / (sweep + 8 * self.cost(1))

    def cost(self, width: int) -> float:
        """Seconds of a level of `width` nodes: measured, else on the line through the nearest measured widths."""
        known = sorted(self.levels)
        if not known:
            return 0.0
        if width in self.levels:
            return self.levels[width]
        below = [w for w in known if w < width]
        above = [w for w in known if w > width]
        if below and above:
            low, high = below[-1], above[0]
            return self.levels[low] + (self.levels[high] - self.levels[low]) * (width - low) / (high - low)
        if not below:
            return self.levels[known[0]]
        low = below[-1]
        return self.levels[low] * (1 + 0.2 * (width - low) / low)

    def width(self, chances: Sequence[float], least: int, most: int, free: bool) -> int:
        """How many of the nodes with these `chances` (best first) the next level should run; 0: stop drafting.

        `free`: the link is still filling the ring, so the time of a narrow level costs nothing."""
        best, best_value, gain = 0, 0.0, 0.0
        for count, chance in enumerate(chances[:most], 1):
            gain += chance
            value = gain - self.rate * self.cost(count)
            if value > best_value:
                best, best_value = count, value
        if best == 0 and free and chances and chances[0] > 0.05:
            best = 1
        return max(best, min(least, len(chances))) if best else 0
