"""When to stop drafting: one more level is worth it while it is expected to give tokens faster than the loop gives them now.

The chance that a drafted token is the target's comes from what was accepted before, by the draft's own margin; the cost of a
level is measured by its width. No fixed shape (SubSpec drafts 6 x 48 always, arXiv 2509.18344)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
RANKS = 4
PRIOR_WEIGHT = 6.0
SURE = 0.995  # no draft is surer than this before it was seen to be
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0)  # how fast agreement may rise with the margin; which of them fits is learned
MIDDLES = (0.05, 0.17, 0.37, 0.62, 0.87, 1.2, 1.7, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0)  # of the margins between EDGES


@dataclass
class Calibration:
    """Chance that the target agrees, by the draft's margin between its first and second token, learned online.

    Margins are in the units of the scores whose argmax is chosen: logits when greedy, noisy scaled log p when sampling. Before
    a margin was seen often, its chance is that of logistic curves, each believed as far as it foretold what was seen."""

    belief: list[float] = field(default_factory=lambda: [-3.0, -2.0, -1.0, -0.5, 0.0])  # log weight of each SHARPNESS
    hits: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    trials: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    ranks: list[float] = field(
        default_factory=lambda: [6.0, 2.0, 1.0, 1.0]
    )  # where first-choice misses go; the last: elsewhere
    aside: list[float] = field(
        default_factory=lambda: [4.0, 4.0]
    )  # nodes off the argmax chain: accepted, and foretold to be

    @property
    def trust(self) -> float:
        """By how much the chances of nodes off the argmax chain came true: there one guess rests on another."""
        return max(min(self.aside[0] / self.aside[1], 1.0), 0.05)

    def compare(self, accepted: float, foretold: float) -> None:
        """Of a tree's nodes off the argmax chain so many were accepted, where so many had been foretold."""
        self.aside = [0.9 * self.aside[0] + accepted, max(0.9 * self.aside[1] + foretold, 1e-3)]

    @property
    def weights(self) -> list[float]:
        """How far each of SHARPNESS is believed, the most believed 1."""
        return [math.exp(belief - max(self.belief)) for belief in self.belief]

    def chances(self, scores: Sequence[float]) -> list[float]:
        """`scores` of the best children, best first -> the chance of each to be the target's choice."""
        margin = scores[0] - scores[1] if len(scores) > 1 else math.inf
        bucket = bucket_of(margin)
        weights = self.weights
        prior = sum(w * _curve(s, margin) for w, s in zip(weights, SHARPNESS, strict=True)) / sum(weights)
        first = (self.hits[bucket] + PRIOR_WEIGHT * prior) / (self.trials[bucket] + PRIOR_WEIGHT)
        total = sum(self.ranks)
        return [first, *((1 - first) * share / total for share in self.ranks[: len(scores) - 1])]

    def learn(self, bucket: int, rank: int | None) -> None:
        """The target chose the child of this rank (None: none of them) after a node in `bucket`."""
        self.trials[bucket] += 1
        self.hits[bucket] += rank == 0
        for i, sharpness in enumerate(SHARPNESS):
            chance = _curve(sharpness, MIDDLES[bucket])
            self.belief[i] += math.log(chance if rank == 0 else 1 - chance)
        if rank != 0:
            self.ranks[len(self.ranks) - 1 if rank is None else min(rank, len(self.ranks)) - 1] += 1


def _curve(sharpness: float, margin: float) -> float:
    return min(1 / (1 + math.exp(-min(sharpness * margin, 40.0))), SURE)


def bucket_of(margin: float) -> int:
    return sum(margin >= edge for edge in EDGES)


@dataclass
class Pace:
    """Measured seconds per draft level by width, and tokens per second of the whole loop (moving averages)."""

    levels: dict[int, float] = field(default_factory=dict)
    rate: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def record_level(self, width: int, seconds: float) -> None:
        old = self.levels.get(width)
        if old is None:
            self.levels[width] = seconds
        else:  # what disturbs a level makes it longer, never shorter
            share = 1.0 if seconds < 0.7 * old else 0.5 if seconds < old else 0.2
            self.levels[width] = old + share * (min(seconds, 4 * old) - old)

    def record_round(self, tokens: int, seconds: float) -> None:
        """The rate is a ratio of sums over about the last ten rounds."""
        self.tokens = 0.9 * self.tokens + tokens
        self.seconds = 0.9 * self.seconds + seconds
        self.rate = self.tokens / self.seconds

    @property
    def break_even(self) -> float:
        """The chance of a node for which the narrowest level pays, within reason."""
        return min(max(self.rate * self.cost(1), 0.05), 0.95)

    def first_guess(self, seconds: float) -> None:
        """Before the first round: a pass of a tile takes `seconds`, and some eight tokens a pass are common."""
        if not self.rate:
            self.rate = 8 / (seconds + 8 * self.cost(1))

    def cost(self, width: int) -> float:
        """Seconds of a level of `width` nodes: measured, else on the line through the nearest measured widths.

        No level takes longer than a wider one did."""
        known = sorted(self.levels)
        if not known:
            return 0.0
        wider = min((self.levels[w] for w in known if w > width), default=math.inf)
        return min(self._cost(width, known), wider)

    def _cost(self, width: int, known: Sequence[int]) -> float:
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

    def width(self, chances: Sequence[float], least: int, most: int, free: bool, node: float = 0.0) -> int:
        """How many of the nodes with these `chances` (best first) the next level should run; 0: stop drafting.

        `free`: the link is still filling the ring, so the time of a narrow level costs nothing. `node`: seconds that each node
        adds to the pass that verifies it."""
        best, best_value, gain = 0, 0.0, 0.0
        for count, chance in enumerate(chances[:most], 1):
            gain += chance
            value = gain - self.rate * (self.cost(count) + count * node)
            if value > best_value:
                best, best_value = count, value
        if best == 0 and free and chances and chances[0] > 0.05:
            best = 1
        return max(best, min(least, len(chances))) if best else 0


    def together(self, chances: Sequence[float], beside: int) -> int:
        """How many guesses with these `chances` (best first) a level of `beside` nodes should check as well: a right one saves a
        level, and each makes this one longer."""
        best, best_value, saved = 0, 0.0, 0.0
        for count, chance in enumerate(chances, 1):
            saved += chance * self.cost(1)
            value = saved - (self.cost(beside + count) - self.cost(beside))
            if value > best_value:
                best, best_value = count, value
        return best
