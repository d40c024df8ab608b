"""When to stop drafting: one more level is worth it while it is expected to give tokens faster than the loop gives
them now.

The chance that a drafted token is the target's comes from the proposer's own scores and from what was accepted before;
the cost of a level is measured by its width. No shape is fixed (SubSpec drafts 6 x 48 always, arXiv 2509.18344). All
constants of the policy are here, for the search on the processor and for the one on a device."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# The best children of a node that are looked at.
RANKS = 6
# How sharply chances fall with the gap to the best score; which of these fits is learned.
SHARPNESS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
# What is believed of each before anything was seen, as a log weight: two is likeliest, twice and half of it are less likely.
BELIEF = tuple(-abs(math.log2(sharpness / 2.0)) for sharpness in SHARPNESS)
# How often the target's choice was not among the best children, of how many nodes, before anything was seen.
MISSED = 0.1
SEEN = 20.0
# Beyond this exponent a chance is nothing.
STEEPEST = 40.0
# The share of chances that is spread evenly when they are judged, so that one surprise does not decide.
SURPRISE = 0.02
# What was seen loses so much of its weight with each node.
FORGETTING = 0.99
# Matches of this length or more, between the end of a text and an earlier place, are not told apart.
LONGEST = 8
# How much the text speaks for the token that stood at an earlier place, added to its score: before anything was seen (greedy and
# sampled), at most, and how fast that is learned.
BONUS = {False: 1.0, True: 0.25}
MOST_BONUS = 4.0
BONUS_STEP = 0.15
# The most nodes of one sequence in a level, unless the shape is forced.
WIDEST = 16
# Nodes that a first tree may well have.
FIRST_NODES = 32
# Accepted tokens of a pass, before the first one.
FIRST_TOKENS = 8
# A chain never loses less of its chance than this in a level, and no suggestion is surer.
LIKELIEST = 0.98
# Whole levels that rounding may have made less are whole.
ROUNDING = 1e-9
# A candidate below this chance is not run even while drafting costs nothing,
LEAST_FREE = 0.05
# and one below this is not verified even for nothing.
UNLIKELY = 0.01
# Bounds of the chance at which a level pays.
LEAST_BREAK_EVEN = 0.05
MOST_BREAK_EVEN = 0.95
# What was seen loses so much of its weight with each round, and with each checked suggestion.
DECAY = 0.9
AGREEMENT_DECAY = 0.98


@dataclass
class Calibration:
    """Chances that the target chooses each child, from the draft's scores, learned online.

    Scores are those whose argmax is chosen: logits when greedy, noisy scaled log p when sampling. The target's scores are the
    draft's and some noise, so a child that lies further behind the best is less likely to be chosen: chances are the softmax of
    scores times a sharpness. The sharpnesses that foretold best what was seen weigh most."""

    # Log weight of each SHARPNESS.
    belief: list[float] = field(default_factory=lambda: list(BELIEF))
    # How often the target's choice was not among the best children, of how many nodes.
    missed: float = MISSED
    seen: float = SEEN
    # What is added to the score of the token that the text itself speaks for, by the length of the match.
    bonus: list[float] = field(default_factory=lambda: [BONUS[False]] * (LONGEST + 1))
    # `weights` of the belief that they were last asked for: a draft asks for each of its nodes.
    _weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), init=False, repr=False, compare=False)
    _weights_for: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def weights(self) -> list[float]:
        """How much each of SHARPNESS is believed; they add up to 1."""
        most = max(self.belief)
        weights = [math.exp(belief - most) for belief in self.belief]
        total = sum(weights)
        return [weight / total for weight in weights]

    @property
    def inside(self) -> float:
        """The chance that the target's choice is among the best children at all."""
        return 1 - self.missed / self.seen

    def chances(self, scores: Sequence[float]) -> list[float]:
        """The chance of each child to be the target's choice, from the `scores` of the best children, best first."""
        from ..kernels.choosing import chances  # numba: not for those who only read these names

        if self._weights_for != self.belief:
            self._weights_for, self._weights = list(self.belief), np.array(self.weights)
        return chances(scores, _SHARPNESS, self._weights, self.inside, STEEPEST)

    def learn(self, scores: Sequence[float], rank: int | None) -> None:
        """Learn that the target chose the child of this rank after a node whose best children have these `scores`. None: none of
        them, which says nothing of sharpness."""
        self.seen += 1
        self.missed += rank is None
        if rank is None:
            return
        gaps = [scores[0] - score for score in scores]
        for i, sharpness in enumerate(SHARPNESS):
            weights = _weights(gaps, sharpness)
            chance = (1 - SURPRISE) * (weights[rank] / sum(weights)) + SURPRISE / len(scores)
            self.belief[i] = FORGETTING * self.belief[i] + math.log(chance)

    def learn_bonus(self, length: int, foretold: float, right: bool) -> None:
        """Learn whether the token that the text spoke for, after a match of this `length`, was `right`, where its chance had been
        `foretold`."""
        bonus = self.bonus[length] + BONUS_STEP * (right - foretold)
        self.bonus[length] = min(max(bonus, 0.0), MOST_BONUS)


_SHARPNESS = np.array(SHARPNESS)


def _weights(gaps: Sequence[float], sharpness: float) -> list[float]:
    """What a softmax divides by their sum, of scores that lie by `gaps` behind the best."""
    return [math.exp(-fall if (fall := sharpness * gap) < STEEPEST else -STEEPEST) for gap in gaps]


def _fall(chance: float, depth: int) -> float:
    """The logarithm of what a level leaves of the chance of a chain that has this `chance` at `depth`."""
    return math.log(min(chance ** (1 / depth), LIKELIEST)) if chance > 0 else -math.inf


def _levels(chance: float, fall: float, least: float) -> int:
    """How many levels a chain of this `chance` stays likelier than `least`, if it loses as much in each as `fall` says."""
    return max(0, int(math.log(least / chance) / fall + ROUNDING)) if chance > least else 0


def averaged(old: float | None, seconds: float) -> float:
    """What something takes, once it took `seconds`. What disturbs it makes it longer, never shorter."""
    if old is None:
        return seconds
    share = 1.0 if seconds < 0.7 * old else 0.5 if seconds < old else 0.2
    return old + share * (min(seconds, 4 * old) - old)


@dataclass
class Pace:
    """What a level costs, and how fast the loop is: moving averages of what was measured."""

    # Seconds of a level by its width in nodes.
    levels: dict[int, float] = field(default_factory=dict)
    # Seconds in which a head in front of the proposer says one token for each of so many texts.
    steps: dict[int, float] = field(default_factory=dict)
    # Tokens per second of the whole loop; 0: not known yet.
    rate: float = 0.0
    # Decaying sums over rounds; `rate` is their ratio.
    tokens: float = 0.0
    seconds: float = 0.0
    # What `cost` makes of `levels`: those that it saw last, their widths, and for each what the quickest wider one takes.
    _seen: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _widths: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    _wider: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def record_level(self, width: int, seconds: float) -> None:
        """Learn that a level of `width` nodes took `seconds`."""
        self.levels[width] = averaged(self.levels.get(width), seconds)

    def record_step(self, texts: int, seconds: float) -> None:
        """Learn that a head took `seconds` to say one token for each of `texts`."""
        self.steps[texts] = averaged(self.steps.get(texts), seconds)

    def step(self, texts: int) -> float:
        """Seconds in which a head says one token for each of `texts`: as for the nearest number that was measured; 0 before any
        was."""
        return self.steps[min(self.steps, key=lambda known: abs(known - texts))] if self.steps else 0.0

    @property
    def node_share(self) -> float:
        """What a second node adds to a level of one, as a share of that; 0 before any was measured."""
        one = self.cost(1)
        return (self.cost(2) - one) / one if one else 0.0

    def pays_to_ask(self, chance: float, texts: int, width: int) -> bool:
        """Does it save time to let a head say one more token for each of `texts`, the last nodes of a level of `width`? A right one
        saves a level; `chance`: how many of them are likely to be right."""
        return chance * self.cost(1) > self.step(texts) + self.cost(width + texts) - self.cost(width)

    def record_round(self, tokens: int, seconds: float) -> None:
        """Learn that a round of drafting and verifying gave `tokens` in `seconds`. The last ten rounds or so decide
        the rate."""
        self.tokens = DECAY * self.tokens + tokens
        self.seconds = DECAY * self.seconds + seconds
        self.rate = self.tokens / self.seconds

    def scale(self, tokens: float, seconds: float) -> None:
        """Expect so many times the tokens of a round, in so many times the seconds: other texts take part."""
        self.tokens *= tokens
        self.seconds *= seconds
        if self.seconds:
            self.rate = self.tokens / self.seconds

    @property
    def break_even(self) -> float:
        """The acceptance chance at which a level of one node pays for itself, clamped."""
        return min(max(self.rate * self.cost(1), LEAST_BREAK_EVEN), MOST_BREAK_EVEN)

    def levels_left(self, chance: float, depth: int, least: float = 0.0) -> int:
        """How many more levels are likely to pay, and to be likelier than `least`, if a chain of this `chance` at `depth` goes on
        losing chance as it has so far."""
        return _levels(chance, _fall(chance, depth), max(least, self.break_even))

    def first_guess(self, seconds: float, texts: int = 1, each: float = FIRST_TOKENS) -> None:
        """Guess the rate before the first round of a text: a pass takes `seconds` and gives each of `texts` so many tokens. A lower
        rate that was measured stays: a higher one may come from a text that repeated itself, and would keep drafts short."""
        tokens = each * texts
        taken = seconds + each * self.cost(1)
        if not self.rate or tokens / taken < self.rate:
            self.tokens = tokens
            self.seconds = taken
            self.rate = tokens / taken

    def cost(self, width: int) -> float:
        """Seconds of a level of `width` nodes: measured, else on the line through the nearest measured widths.

        No level takes longer than a wider one did."""
        if self._seen != self.levels:
            self._look()
        known = self._widths
        if not known:
            return 0.0
        place = bisect_left(known, width)
        if place < len(known) and known[place] == width:
            return min(self.levels[width], self._wider[place + 1])
        return min(self._between(width, place), self._wider[place])

    def _look(self) -> None:
        """Take in what was measured since `cost` was last asked."""
        self._seen, self._widths, self._wider = dict(self.levels), sorted(self.levels), [math.inf]
        for width in reversed(self._widths):
            self._wider.append(min(self.levels[width], self._wider[-1]))
        self._wider.reverse()

    def _between(self, width: int, place: int) -> float:
        """Seconds of a level of a `width` that was not measured, which would be number `place` of those that were."""
        known = self._widths
        if not place:
            return self.levels[known[0]]
        low = known[place - 1]
        if place == len(known):
            return self.levels[low] * (1 + 0.2 * (width - low) / low)
        high = known[place]
        return self.levels[low] + (self.levels[high] - self.levels[low]) * (width - low) / (high - low)

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

    def share(self, chances: Sequence[float], tips: Sequence[tuple[float, int]], room: int) -> int:
        """How many nodes with these `chances` (best first), of all texts together, the next level may run, so that the likeliest
        nodes of all levels get the `room` that is left.

        `tips`: chance and depth of the end of each text's chain. As far as it is likelier than a node, a chain goes first."""
        best = 0
        pays, falls = self.break_even, [(chance, _fall(chance, depth)) for chance, depth in tips]
        for count, chance in enumerate(chances[:room], 1):
            if count + sum(_levels(*fall, max(chance, pays)) for fall in falls) > room:
                break
            best = count
        return best

    def together(self, chances: Sequence[float], beside: int, padded: Callable[[int], int] = int) -> int:
        """How many suggested tokens with these `chances` (best first) a level of `beside` other nodes should check
        as well. A level of so many nodes takes the time of `padded` ones.

        A right one saves a level, and each makes this level longer."""
        best = 0
        best_value = saved = 0.0
        for count, chance in enumerate(chances, 1):
            saved += chance * self.cost(1)
            value = saved - (self.cost(padded(beside + count)) - self.cost(padded(beside)))
            if value > best_value:
                best = count
                best_value = value
        return best
