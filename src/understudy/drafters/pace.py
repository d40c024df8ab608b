"""When to stop drafting: one more level is worth it while it is expected to give tokens faster than the loop gives
them now.

The chance that a drafted token is the target's comes from what was accepted before, by the proposer's own margin;
the cost of a level is measured by its width. No shape is fixed (SubSpec drafts 6 x 48 always, arXiv 2509.18344). All
constants of the policy are here, for the search on the processor and for the one on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# Margins (the best score less the second) fall in buckets with these edges; a middle for each bucket.
EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
MIDDLES = (0.05, 0.17, 0.37, 0.62, 0.87, 1.2, 1.7, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0)
# The best children of a node that are looked at.
RANKS = 4
# Before a bucket was seen so many times, logistic curves weigh more than what was seen in it.
PRIOR_WEIGHT = 6.0
# No curve says a chance above this.
SURE = 0.995
# How fast agreement may rise with the margin; which of these curves fits is learned.
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Beyond this exponent a curve is flat in float64.
STEEPEST = 40.0
# The most nodes of one sequence in a level, unless the shape is forced.
WIDEST = 16
# Nodes that a first tree may well have.
FIRST_NODES = 32
# Accepted tokens of a pass, before the first one.
FIRST_TOKENS = 8
# A chain never loses less of its chance than this in a level, and no suggestion is surer.
LIKELIEST = 0.98
# A candidate below this chance is not run even while drafting costs nothing,
LEAST_FREE = 0.05
# and one below this is not verified even for nothing.
UNLIKELY = 0.01
# Bounds of the chance at which a level pays.
LEAST_BREAK_EVEN = 0.05
MOST_BREAK_EVEN = 0.95
# Nodes off the chain of first choices are trusted at least so much.
LEAST_TRUST = 0.05
# What was seen loses so much of its weight with each round, and with each checked suggestion.
DECAY = 0.9
AGREEMENT_DECAY = 0.98


@dataclass
class Calibration:
    """Chance that the target agrees, by the draft's margin between its first and second token, learned online.

    Margins are in the units of the scores whose argmax is chosen: logits when greedy, noisy scaled log p when
    sampling. A margin that was not seen often has the chance of logistic curves; the curves that foretold best what was
    seen weigh most."""

    # Log weight of each SHARPNESS.
    belief: list[float] = field(default_factory=lambda: [-3.0, -2.0, -1.0, -0.5, 0.0])
    # By bucket: how often the first choice was the target's, of how many.
    hits: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    trials: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    # Where the target's choices went that were not the first: to the second, third and fourth choice, or elsewhere.
    ranks: list[float] = field(default_factory=lambda: [6.0, 2.0, 1.0, 1.0])
    # Nodes off the chain of first choices, decaying: accepted, and foretold to be.
    aside: list[float] = field(default_factory=lambda: [4.0, 4.0])

    @property
    def trust(self) -> float:
        """The share of the foretold chances of nodes off the chain of first choices that came true: one guess rests
        on another."""
        return max(min(self.aside[0] / self.aside[1], 1.0), LEAST_TRUST)

    def compare(self, accepted: float, foretold: float) -> None:
        """Learn that of a tree's nodes off the chain of first choices `accepted` were, where `foretold` had been
        expected."""
        self.aside = [DECAY * self.aside[0] + accepted, max(DECAY * self.aside[1] + foretold, 1e-3)]

    @property
    def weights(self) -> list[float]:
        """How much each of SHARPNESS is believed; the most believed has 1."""
        return [math.exp(belief - max(self.belief)) for belief in self.belief]

    def chances(self, scores: Sequence[float]) -> list[float]:
        """The chance of each child to be the target's choice, from the `scores` of the best children, best first."""
        margin = scores[0] - scores[1] if len(scores) > 1 else math.inf
        bucket = bucket_of(margin)
        weights = self.weights
        prior = sum(w * _curve(s, margin) for w, s in zip(weights, SHARPNESS, strict=True)) / sum(weights)
        first = (self.hits[bucket] + PRIOR_WEIGHT * prior) / (self.trials[bucket] + PRIOR_WEIGHT)
        total = sum(self.ranks)
        return [first, *((1 - first) * share / total for share in self.ranks[: len(scores) - 1])]

    def learn(self, bucket: int, rank: int | None) -> None:
        """Learn that the target chose the child of this rank (None: none of them) after a node in `bucket`."""
        self.trials[bucket] += 1
        self.hits[bucket] += rank == 0
        for i, sharpness in enumerate(SHARPNESS):
            chance = _curve(sharpness, MIDDLES[bucket])
            self.belief[i] += math.log(chance if rank == 0 else 1 - chance)
        if rank != 0:
            self.ranks[len(self.ranks) - 1 if rank is None else min(rank, len(self.ranks)) - 1] += 1


def _curve(sharpness: float, margin: float) -> float:
    """A logistic curve: the chance that the first choice is right, as one sharpness foretells it."""
    return min(1 / (1 + math.exp(-min(sharpness * margin, STEEPEST))), SURE)


def bucket_of(margin: float) -> int:
    """The number of the bucket between EDGES that `margin` falls in."""
    return sum(margin >= edge for edge in EDGES)


@dataclass
class Pace:
    """What a level costs, and how fast the loop is: moving averages of what was measured."""

    # Seconds of a level by its width in nodes.
    levels: dict[int, float] = field(default_factory=dict)
    # Tokens per second of the whole loop; 0: not known yet.
    rate: float = 0.0
    # Decaying sums over rounds; `rate` is their ratio.
    tokens: float = 0.0
    seconds: float = 0.0

    def record_level(self, width: int, seconds: float) -> None:
        """Learn that a level of `width` nodes took `seconds`."""
        old = self.levels.get(width)
        if old is None:
            self.levels[width] = seconds
        else:  # what disturbs a level makes it longer, never shorter
            share = 1.0 if seconds < 0.7 * old else 0.5 if seconds < old else 0.2
            self.levels[width] = old + share * (min(seconds, 4 * old) - old)

    def record_round(self, tokens: int, seconds: float) -> None:
        """Learn that a round of drafting and verifying gave `tokens` in `seconds`. The last ten rounds or so decide
        the rate."""
        self.tokens = DECAY * self.tokens + tokens
        self.seconds = DECAY * self.seconds + seconds
        self.rate = self.tokens / self.seconds

    @property
    def break_even(self) -> float:
        """The acceptance chance at which a level of one node pays for itself, clamped."""
        return min(max(self.rate * self.cost(1), LEAST_BREAK_EVEN), MOST_BREAK_EVEN)

    def levels_left(self, chance: float, depth: int) -> int:
        """How many more levels are likely to pay, if a chain of this `chance` at `depth` goes on losing chance as it
        has so far."""
        least = self.break_even
        loss = min(chance ** (1 / depth), LIKELIEST)
        return max(0, int(math.log(least / chance) / math.log(loss))) if chance > least else 0

    def first_guess(self, seconds: float) -> None:
        """Guess the rate before the first round: a pass takes `seconds` and gives FIRST_TOKENS."""
        if not self.rate:
            self.rate = FIRST_TOKENS / (seconds + FIRST_TOKENS * self.cost(1))

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
            low = below[-1]
            high = above[0]
            return self.levels[low] + (self.levels[high] - self.levels[low]) * (width - low) / (high - low)
        if not below:
            return self.levels[known[0]]
        low = below[-1]
        return self.levels[low] * (1 + 0.2 * (width - low) / low)

    def width(self, chances: Sequence[float], least: int, most: int, free: bool, node: float = 0.0) -> int:
        """How many of the nodes with these `chances` (best first) the next level should run; 0: stop drafting.

        free: the link is still filling the ring, so the time of a narrow level costs nothing. node: seconds that
        each node adds to the pass that verifies it."""
        best = 0
        best_value = gain = 0.0
        for count, chance in enumerate(chances[:most], 1):
            gain += chance
            value = gain - self.rate * (self.cost(count) + count * node)
            if value > best_value:
                best = count
                best_value = value
        if best == 0 and free and chances and chances[0] > LEAST_FREE:
            best = 1
        return max(best, min(least, len(chances))) if best else 0


    def together(self, chances: Sequence[float], beside: int) -> int:
        """How many suggested tokens with these `chances` (best first) a level of `beside` other nodes should check
        as well.

        A right one saves a level, and each makes this level longer."""
        best = 0
        best_value = saved = 0.0
        for count, chance in enumerate(chances, 1):
            saved += chance * self.cost(1)
            value = saved - (self.cost(beside + count) - self.cost(beside))
            if value > best_value:
                best = count
                best_value = value
        return best
