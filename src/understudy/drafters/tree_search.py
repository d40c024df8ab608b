"""The tree search on the processor.

Best first: each level runs the nodes most likely to be on the target's path, wherever in the tree they are. The tip
of the chain of first choices is always among them. How wide and how deep it goes, `pace` decides; a forced shape has
the same width in each level. `device_search` is the same search as a function of tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..adjust import Adjustment
from ..sampling import likeliest
from ..tree import Nodes, TokenTree, paths
from .growing_tree import Candidate, GrowingTree
from .pace import RANKS, WIDEST
from .policy import DraftPolicy
from .proposer import Proposer
from .suggest import NOTHING, Checked, Suggester, Suggestion, Tip, worth_checking

# A candidate, and the number of its tree.
Option = tuple[Candidate, int]
# The score and the token of a child.
Child = tuple[float, int]


def _likeliest(options: list[Option], most: int) -> list[Option]:
    """The likeliest of `options`, at most so many, the likeliest first; of equal ones that on its chain, else the first."""
    if len(options) > most:
        least = sorted([candidate.chance for candidate, _ in options], reverse=True)[most - 1]
        options = [option for option in options if option[0].chance >= least]
    return sorted(options, key=lambda option: (-option[0].chance, not option[0].spine))[:most]


@dataclass
class Work:
    """What the next level runs of one tree: its newest nodes, and suggested ones after them."""

    tree: GrowingTree
    # The candidates that became the newest nodes.
    fresh: list[Candidate]
    # The number of the first of those nodes.
    first: int
    # Suggested tokens, which are nodes after the fresh ones.
    suggestion: Suggestion = NOTHING

    @property
    def tip(self) -> int | None:
        """Which of `fresh` is the end of the chain of first choices."""
        return next((i for i, candidate in enumerate(self.fresh) if candidate.spine), None)

    def add_suggestion(self) -> None:
        """Make the suggested tokens nodes, the chain first."""
        tip, start = self.first + (self.tip or 0), len(self.tree.tokens)
        self.tree.guess(self.suggestion.tokens, tip)
        for other in self.suggestion.others:
            self.tree.guess([other.token], start + other.after - 1 if other.after else tip)


class TreeSearch:
    """Grows trees with `proposer`. Suggestions of `suggester` are checked in the same levels; None: there are none."""

    widest = WIDEST

    def __init__(self, proposer: Proposer, policy: DraftPolicy, suggester: Suggester | None = None):
        self.proposer = proposer
        self.policy = policy
        self.suggester = suggester

    def run(self, trees: list[GrowingTree]) -> None:
        with self.policy.turn:
            self._run(trees)

    def _run(self, trees: list[GrowingTree]) -> None:
        chosen = {
            i: [Candidate(1.0, -1, tree.tokens[0], 0, True)]
            for i, tree in enumerate(trees)
            if tree.levels > 0
        }
        while chosen:
            work = [Work(trees[i], fresh, len(trees[i].tokens) - len(fresh)) for i, fresh in chosen.items()]
            self._level(work, trees)
            chosen = self._choose(trees)
        for tree in trees:
            tree.settle()

    def measure(self, width: int) -> float:
        # Children of one root: no proposer needs more to be run before.
        tree = TokenTree.of([0] * (width + 1), [-1] + [0] * width)
        start = time.perf_counter()
        with self.proposer.device.sharing("level", width):
            self.proposer.forward(Nodes.of(tree, 0, 0, 1))
        return time.perf_counter() - start

    def _level(self, work: list[Work], trees: list[GrowingTree]) -> None:
        """One forward over the newest nodes of each tree; their best children join the pools."""
        self._add_suggestions(work, sum(tree.size for tree in trees))
        start = time.perf_counter()
        nodes = [part.tree.nodes(part.first) for part in work]
        flat = Nodes.join(nodes)
        with self.proposer.device.sharing("level", len(flat)):
            self._run_level(work, nodes, flat)
        self.policy.pace.record_level(len(flat), time.perf_counter() - start)

    def _run_level(self, work: list[Work], nodes: list[Nodes], flat: Nodes) -> None:
        """Run the `nodes` of the trees, all of them together `flat`, and take up their best children."""
        with self.policy.elsewhere():
            logits = self.proposer.forward(flat)
        at = 0
        for part, own in zip(work, nodes, strict=True):
            part.tree.levels_run += 1
            part.tree.nodes_run += len(own)
            agreed = self._score(part, own, logits[at : at + len(own)])
            if self.suggester is not None and part.tip is not None:
                self.suggester.saw(part.tree, [at + part.tip, *(at + node - part.first for node in agreed)])
            at += len(own)

    def _score(self, part: Work, nodes: Nodes, logits: Tensor) -> list[int]:
        """Find the best children after each node; logits: [n, vocab]. Suggested nodes stay until the proposer says
        otherwise. Returns those that stay."""
        tree = part.tree
        adjust = Adjustment.of(tree.sequence, lambda: paths(tree.tokens, tree.parents)[part.first :])
        best = likeliest(logits, tree.sequence.params, nodes.positions.to(logits.device) + 1, RANKS, adjust)
        scores: list[list[float]] = best[0].tolist()
        tokens: list[list[int]] = best[1].tolist()
        for i, candidate in enumerate(part.fresh):
            self._add_children(tree, part.first + i, candidate, scores[i], tokens[i])
        guesses = range(part.first + len(part.fresh), part.first + len(nodes))
        agreed: list[int] = []
        for node in guesses:
            found = tree.agree(node)
            if found is not None:
                i = node - part.first
                self._add_children(tree, node, found, scores[i], tokens[i])
                agreed.append(node)
        tree.drop([node for node in guesses if node not in agreed])
        if self.suggester is not None and guesses:
            told = self._checked(part, agreed, guesses.start)
            tree.suggested.update(told.suggested)
            tree.agreed.update(told.right)
            self.suggester.learn(tree, told)
        return agreed

    def _checked(self, part: Work, agreed: list[int], first: int) -> Checked:
        """What the proposer said of the suggestion of `part`, whose nodes begin at `first`, where it `agreed` to these."""
        chain = sum(node < first + len(part.suggestion.tokens) for node in agreed)
        other = part.suggestion.others[agreed[-1] - first - len(part.suggestion.tokens)] if len(agreed) > chain else None
        return Checked(part.suggestion, chain, other)

    def _add_children(
        self, tree: GrowingTree, node: int, candidate: Candidate, scores: list[float], tokens: list[int]
    ) -> None:
        """The best children of `node`, which was `candidate`, join the pool."""
        # A draft whose logits are no numbers has no children there; what they are is for the target to say.
        kept = [(score, token) for score, token in zip(scores, tokens, strict=True) if math.isfinite(score)]
        kept = self._favour(tree, node, candidate, kept)
        finite = [score for score, _ in kept]
        tree.children[node] = (finite, [token for _, token in kept])
        chances = self.policy.calibration(tree.sequence).chances(finite)
        for rank, (chance, (_, token)) in enumerate(zip(chances, kept, strict=True)):
            spine = candidate.spine and rank == 0
            tree.pool.append(Candidate(candidate.chance * chance, node, token, candidate.depth + 1, spine))

    def _favour(self, tree: GrowingTree, node: int, candidate: Candidate, children: list[Child]) -> list[Child]:
        """The best children of `node`, which was `candidate`, best first, once the one that the text speaks for has a higher
        score."""
        if self.suggester is None:
            return children
        favoured, length = self.suggester.favoured(tree, candidate)
        if not length or all(token != favoured for _, token in children):
            return children
        bonus = self.policy.calibration(tree.sequence).bonus[length]
        raised = [(score + bonus * (token == favoured), token) for score, token in children]
        raised.sort(key=lambda child: -child[0])
        tree.favoured[node] = length, [token for _, token in raised].index(favoured)
        return raised

    def _add_suggestions(self, work: list[Work], used: int) -> None:
        """Suggested tokens become nodes after the tips, where checking them is likely to save more time than it takes.

        used: nodes of all trees so far."""
        found = self._suggested(work)
        beside = sum(len(part.fresh) for part in work)
        most = min(self.policy.most_nodes - used, WIDEST * len(work) - beside)
        kept = worth_checking(found, most, lambda chances: self.policy.pace.together(chances, beside))
        for part, suggestion in zip(work, kept, strict=True):
            part.suggestion = suggestion
            part.add_suggestion()

    def _suggested(self, work: list[Work]) -> list[Suggestion]:
        """What is suggested after the tip of each part: tokens whose own children could still be used."""
        found = [NOTHING] * len(work)
        tips = {i: self._tip(part.tree, part.fresh[part.tip]) for i, part in enumerate(work) if part.tip is not None}
        open_tips = {i: tip for i, tip in tips.items() if tip.most > 0}
        if self.suggester is None or not open_tips:
            return found
        said = self.suggester.suggest(list(open_tips.values()), self.policy.pace)
        for (i, tip), suggestion in zip(open_tips.items(), said, strict=True):
            found[i] = suggestion.first(tip.most)
        return found

    def _tip(self, tree: GrowingTree, candidate: Candidate) -> Tip:
        return Tip.of(tree, candidate, self.policy.limits.capacity, WIDEST)

    def _choose(self, trees: list[GrowingTree]) -> dict[int, list[Candidate]]:
        """The candidates of the next level by the number of their tree; they become nodes. Empty: drafting is over."""
        room = [tree.room(self.policy.limits.capacity) for tree in trees]
        options = [(c, i) for i, tree in enumerate(trees) if room[i] > 0 for c in tree.expandable()]
        result: dict[int, list[Candidate]] = {}
        for candidate, i in self._forced(options, trees) if self.policy.shape.depth else self._best(options, trees):
            if room[i] > 0:
                room[i] -= 1
                trees[i].add(candidate)
                result.setdefault(i, []).append(candidate)
        return result

    def _best(self, options: list[Option], trees: list[GrowingTree]) -> list[Option]:
        """The likeliest, as many as pay and as the pass has room for when the levels to come want their nodes too."""
        pace, limits = self.policy.pace, self.policy.limits
        tips = [option for option in options if option[0].spine]
        used = sum(tree.size for tree in trees)
        room = self.policy.most_nodes - used
        if not tips or room <= 0:
            return []
        best, at = max(tips, key=lambda option: option[0].chance)
        options = _likeliest(options, WIDEST * len(trees))
        chances = [candidate.chance for candidate, _ in options]
        most = max(pace.share(chances, [(tip.chance, tip.depth) for tip, _ in tips], room), 1)
        node = limits.cost.share(used)
        chosen = options[: pace.width(chances, 1, most, limits.filling(), node)]
        if chosen and not any(candidate.spine for candidate, _ in chosen):
            chosen[-1] = (best, at)
        return chosen or ([(best, at)] if self._pays_together(trees[at], best, node) else [])

    def _pays_together(self, tree: GrowingTree, tip: Candidate, node: float) -> bool:
        """Is a level of `tip` worth its time with what is suggested after it? node: seconds that a node adds to the
        pass."""
        pace = self.policy.pace
        asked = self._tip(tree, tip)
        if self.suggester is None or asked.most <= 0:
            return False
        promise = self.suggester.promise(asked, pace)
        count = pace.together(promise.chances[: asked.most], 1)
        tokens = 1 + sum(promise.chances[:count])
        seconds = pace.cost(1 + count) + promise.seconds
        return count > 0 and tip.chance * tokens > pace.rate * (seconds + tokens * node)

    def _forced(self, options: list[Option], trees: list[GrowingTree]) -> Sequence[Option]:
        """Of each tree the children of the newest level: the chain of first choices, then the likeliest,
        `shape.width` in all."""
        shape = self.policy.shape
        level = max((tree.deepest for tree in trees), default=0) + 1
        if level > shape.depth - 1:
            return []
        newest = [option for option in options if option[0].depth == level]
        newest.sort(key=lambda item: (not item[0].spine, -item[0].chance))
        return [option for i in range(len(trees)) for option in [o for o in newest if o[1] == i][: shape.width]]
