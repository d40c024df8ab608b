"""The rules of the tree search written as plainly as they can be: what the quick ones are compared with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.drafters.world import Steady, World
from understudy.drafters.growing_tree import Candidate, GrowingTree
from understudy.drafters.pace import LIKELIEST, LONGEST, ROUNDING, SHARPNESS, STEEPEST, WIDEST, Calibration
from understudy.drafters.suggest import PLACES, TextSuggester
from understudy.drafters.tree_search import Option, TreeSearch
from understudy.tree import Nodes, TokenTree


def plain_match(text: Sequence[int], longest: int = LONGEST) -> tuple[int, int]:
    """`suggest.match`, by narrowing down where the last token stands."""
    tokens = np.asarray(text)
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])[::-1][:PLACES] if len(tokens) > 1 else np.zeros(0, np.int64)
    alive, size = ends, 1
    while len(alive) and size < longest:
        earlier = alive[alive >= size]
        earlier = earlier[tokens[earlier - size] == tokens[-1 - size]]
        if not len(earlier):
            break
        alive, size = earlier, size + 1
    return (size, int(alive[0]) + 1) if len(alive) else (0, 0)


class PlainCalibration(Calibration):
    def chances(self, scores: Sequence[float]) -> list[float]:
        found = [0.0] * len(scores)
        for weight, sharpness in zip(self.weights, SHARPNESS, strict=True):
            falls = [sharpness * (scores[0] - score) for score in scores]
            powers = [math.exp(-min(fall, STEEPEST)) for fall in falls]
            total = 0.0
            for power in powers:  # not sum(), which corrects itself in a later Python
                total += power
            for rank, power in enumerate(powers):
                found[rank] += weight * (power / total)
        return [self.inside * chance for chance in found]


class PlainPace(Steady):
    def levels_left(self, chance: float, depth: int, least: float = 0.0) -> int:
        least = max(least, self.break_even)
        loss = min(chance ** (1 / depth), LIKELIEST)
        return max(0, int(math.log(least / chance) / math.log(loss) + ROUNDING)) if chance > least else 0

    def cost(self, width: int) -> float:
        known = sorted(self.levels)
        if not known:
            return 0.0
        return min([self._line(width, known), *(self.levels[w] for w in known if w > width)])

    def _line(self, width: int, known: Sequence[int]) -> float:
        below, above = [w for w in known if w < width], [w for w in known if w > width]
        if width in self.levels:
            return self.levels[width]
        if not below:
            return self.levels[known[0]]
        low = below[-1]
        if not above:
            return self.levels[low] * (1 + 0.2 * (width - low) / low)
        return self.levels[low] + (self.levels[above[0]] - self.levels[low]) * (width - low) / (above[0] - low)

    def share(self, chances: Sequence[float], tips: Sequence[tuple[float, int]], room: int) -> int:
        fits = [n for n in range(1, len(chances) + 1) if n + sum(self.levels_left(*tip, chances[n - 1]) for tip in tips) <= room]
        return max((n for n in fits if fits[:n] == list(range(1, n + 1))), default=0)


class PlainText(TextSuggester):
    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        text = [*tree.past.tolist(), *tree.path(tip)]
        size, end = plain_match(text)
        return (text[end], size) if size else (-1, 0)


class PlainTree(GrowingTree):
    def nodes(self, first: int) -> Nodes:
        return Nodes.of(TokenTree.of(self.tokens, self.parents), self.sequence.row, self.length, first)


class PlainSearch(TreeSearch):
    def run(self, trees: list[GrowingTree]) -> None:
        for tree in trees:
            tree.__class__ = PlainTree
        super().run(trees)

    def _best(self, options: list[Option], trees: list[GrowingTree]) -> list[Option]:
        pace, limits = self.policy.pace, self.policy.limits
        tips = [option for option in options if option[0].spine]
        used = sum(tree.size for tree in trees)
        room = self.policy.most_nodes - used
        if not tips or room <= 0:
            return []
        best, at = max(tips, key=lambda option: option[0].chance)
        options = sorted(options, key=lambda item: (-item[0].chance, not item[0].spine))
        chances = [candidate.chance for candidate, _ in options]
        most = max(pace.share(chances[:room], [(tip.chance, tip.depth) for tip, _ in tips], room), 1)
        node = limits.cost.share(used)
        chosen = options[: pace.width(chances, 1, min(most, WIDEST * len(trees)), limits.filling(), node)]
        if chosen and not any(candidate.spine for candidate, _ in chosen):
            chosen[-1] = (best, at)
        return chosen or ([(best, at)] if self._pays_together(trees[at], best, node) else [])


@dataclass
class Grown:
    """What a tree was when it was drafted: its nodes, what is known of their children, and the candidates that are left."""

    tokens: list[int]
    parents: list[int]
    children: dict[int, tuple[list[float], list[int]]]
    pool: list[Candidate]


class Recorded(World):
    """A world that keeps every tree. `plain`: it is drafted for by the plain rules."""

    def __init__(self, rows: int, misses: int, costs: dict[int, float], rate: float, guesses: bool, plain: bool) -> None:
        kind = PlainText if plain else TextSuggester
        super().__init__(rows, 3, misses, kind() if guesses else None)
        policy, self.grown = self.drafter.policy, list[Grown]()
        policy.pace = (PlainPace if plain else Steady)(dict(costs), rate=rate)
        if plain:
            policy.calibrations = {key: PlainCalibration(bonus=own.bonus) for key, own in policy.calibrations.items()}
            self.drafter.search = PlainSearch(self.drafter.proposer, policy, self.suggester)
        search = self.drafter.search
        inner = search.run

        def run(trees: list[GrowingTree]) -> None:
            inner(trees)
            self.grown += [Grown([*t.tokens], [*t.parents], dict(t.children), [*t.pool]) for t in trees]

        search.run = run  # type: ignore[method-assign]
