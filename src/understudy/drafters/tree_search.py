"""Growing trees with a model: the one search of every model-based drafter.

Best first: each level runs the nodes most likely to be on the target's path, wherever in the tree they are, the tip of the
argmax chain always among them; its width and the depth follow `pace`. Children that were never run still join where they pay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.cost import PassCost
from ..sampling import scored
from ..sequence import TokenSequence
from ..tree import Nodes, TokenTree
from .growing_tree import Candidate, GrowingTree
from .pace import RANKS, Calibration, Pace, bucket_of
from .suggest import NOTHING, Suggestion, TextSuggester

WIDEST = 16
FIRST = 32  # nodes that a first tree may well have
UNLIKELY = 0.01  # what has less of a chance is not verified even for nothing


@dataclass(frozen=True)
class Shape:
    """A fixed beam, when one is forced; depth 0: decided by the pace. `guess`: is it checked what the text itself suggests?"""

    width: int = 0
    depth: int = 0
    guess: str = "auto"


NO_SHAPE = Shape()


@dataclass(frozen=True)
class Limits:
    """What the model that verifies sets: cache slots of a sequence, the most nodes of a pass, what nodes add to a pass, and whether
    the link is still filling the ring, so that drafting costs nothing."""

    capacity: int
    nodes: int = 128
    cost: PassCost = field(default_factory=PassCost)
    filling: Callable[[], bool] = lambda: False


class TreeSearch:
    """`forward(nodes)` -> logits of the draft model. With a forced `shape` nothing is taken from the text."""

    def __init__(
        self,
        forward: Callable[[Nodes], Tensor],
        pace: Pace,
        limits: Limits,
        shape: Shape = NO_SHAPE,
    ):
        self.forward, self.pace, self.limits, self.shape = forward, pace, limits, shape
        self.calibration = {False: Calibration(), True: Calibration()}
        self.trees: dict[int, GrowingTree] = {}
        self.suggester = TextSuggester() if shape.guess != "off" and not shape.depth else None

    def grow(self, sequences: Sequence[TokenSequence], lengths: Sequence[int]) -> list[TokenTree]:
        """A tree for each sequence; `lengths[i]` tokens of sequence i are in the draft's cache, its last token is the root."""
        trees = [GrowingTree(sequence, length, sequence.tokens[-1:]) for sequence, length in zip(sequences, lengths, strict=True)]
        self.trees = {tree.sequence.row: tree for tree in trees}
        self._search(trees)
        self._fill(trees)
        return [tree.tree for tree in trees]

    def _search(self, trees: list[GrowingTree]) -> None:
        """Levels, one after another, as long as they pay."""
        fresh = {
            i: [Candidate(1.0, -1, tree.tokens[0], 0, True)]
            for i, tree in enumerate(trees)
            if tree.sequence.remaining > 1
        }
        while fresh:
            self._run([(trees[i], some) for i, some in fresh.items()])
            fresh = self._choose(trees)

    def _run(self, work: list[tuple[GrowingTree, list[Candidate]]]) -> None:
        """One forward over the newest nodes of each tree; their best children join the pools."""
        start = time.perf_counter()
        firsts = [len(tree.tokens) - len(some) for tree, some in work]
        guessed = self._guess(work)
        nodes = [Nodes.of(b.tree, b.sequence.row, b.length, first) for (b, _), first in zip(work, firsts, strict=True)]
        flat = Nodes.join(nodes)
        logits = self.forward(flat)
        at = 0
        for (tree, some), part, first, copied in zip(work, nodes, firsts, guessed, strict=True):
            after = part.positions.to(logits.device) + 1
            pieces = scored(logits[at : at + len(part)], tree.sequence.params, after)
            best = [scores.topk(min(RANKS, scores.shape[-1]), dim=-1) for scores in pieces]
            values, tokens = (torch.cat([getattr(b, name) for b in best]).tolist() for name in ("values", "indices"))
            for i, candidate in enumerate(some):
                self._offspring(tree, first + i, candidate, values[i], tokens[i])
            self._check(tree, first + len(some), copied, values[len(some) :], tokens[len(some) :])
            at += len(part)
        self.pace.record_level(len(flat), time.perf_counter() - start)

    def _check(
        self, tree: GrowingTree, first: int, copied: Suggestion, scores: list[list[float]], tokens: list[list[int]]
    ) -> None:
        """TextSuggester, from node `first` on, stay as far as the draft says the same."""
        agreed = 0
        for node in range(first, first + len(copied.tokens)):
            if (candidate := tree.agree(node)) is None:
                tree.drop(node)
                break
            self._offspring(tree, node, candidate, scores[agreed], tokens[agreed])
            agreed += 1
        if copied.tokens and self.suggester is not None:
            self.suggester.learn(copied.size, agreed, min(agreed + 1, len(copied.tokens)))

    def _guess(self, work: list[tuple[GrowingTree, list[Candidate]]]) -> list[Suggestion]:
        """What the text suggests after the tips of the argmax chains runs in the same level, as far as that is likely to save more
        time than it takes."""
        tips = [next((i for i, candidate in enumerate(some) if candidate.spine), None) for _, some in work]
        found = [
            self._copied(tree, None if tip is None else some[tip])
            for (tree, some), tip in zip(work, tips, strict=True)
        ]
        beside, used = sum(len(some) for _, some in work), sum(len(b.tokens) for b in self.trees.values())
        most = max(min(self.limits.nodes - used, WIDEST * len(work) - beside), 0)
        every = sorted((chance for copied in found for chance in copied.chances), reverse=True)[:most]
        count = self.pace.together(every, beside)
        least, result = every[count - 1] if count else 2.0, []
        for (tree, some), tip, copied in zip(work, tips, found, strict=True):
            here = min(sum(chance >= least for chance in copied.chances), count)
            result.append(copied.first(here))
            tree.guess(result[-1].tokens, len(tree.tokens) - len(some) + (tip or 0))
            count -= here
        return result

    def _copied(self, tree: GrowingTree, tip: Candidate | None) -> Suggestion:
        if self.suggester is None or tip is None:
            return NOTHING
        return self.suggester.copied(tree, tip, min(tree.room(self.limits.capacity) - 1, WIDEST))

    def _offspring(
        self, tree: GrowingTree, node: int, candidate: Candidate, scores: list[float], tokens: list[int]
    ) -> None:
        finite = [s for s in scores if s > -float("inf")]
        tree.children[node] = (
            bucket_of(finite[0] - finite[1] if len(finite) > 1 else float("inf")),
            tokens[: len(finite)],
        )
        calibration = self.calibration[tree.sequence.params.temperature > 0]
        for rank, (chance, token) in enumerate(zip(calibration.chances(finite), tokens, strict=False)):
            spine = candidate.spine and rank == 0
            through = candidate.chance * chance * (calibration.trust if candidate.spine and not spine else 1.0)
            tree.pool.append(Candidate(through, node, token, candidate.depth + 1, spine))

    def _choose(self, trees: list[GrowingTree]) -> dict[int, list[Candidate]]:
        """The candidates the next level runs, by tree; they become nodes. Empty: drafting is over."""
        room = [tree.room(self.limits.capacity) for tree in trees]
        options = [(c, i) for i, b in enumerate(trees) if room[i] > 0 for c in b.expandable()]
        if self.shape.depth:
            chosen = self._beam(options, trees)
        else:
            chosen = self._best(options, trees)
        result: dict[int, list[Candidate]] = {}
        for candidate, i in chosen:
            if room[i] > 0:
                room[i] -= 1
                trees[i].add(candidate)
                result.setdefault(i, []).append(candidate)
        return result

    def _best(self, options: list[tuple[Candidate, int]], trees: list[GrowingTree]) -> list[tuple[Candidate, int]]:
        """The likeliest, as many as pay and as the pass has room for when the levels to come want their nodes too."""
        tips = [option for option in options if option[0].spine]
        if not tips:
            return []
        best, at = max(tips, key=lambda option: option[0].chance)
        loss = min(best.chance ** (1 / best.depth), 0.98)
        left = self._levels_left(best.chance, loss)
        used = sum(len(b.tokens) for b in trees)
        room = self.limits.nodes - used
        if room <= 0:
            return []
        options.sort(key=lambda item: (-item[0].chance, not item[0].spine))
        most = max(room // (1 + left), len(tips))
        most = min(most, room, WIDEST * len(trees))
        chances, node = [c.chance for c, _ in options], self.limits.cost.share(used)
        chosen = options[: self.pace.width(chances, 1, most, self.limits.filling(), node)]
        if chosen and not any(c.spine for c, _ in chosen):
            chosen[-1] = (best, at)
        return chosen or ([(best, at)] if self._pays_together(trees[at], best, node) else [])

    def _pays_together(self, tree: GrowingTree, tip: Candidate, node: float) -> bool:
        """Is a level of `tip` worth its time with what the text suggests after it?"""
        chances = self._copied(tree, tip).chances
        count = self.pace.together(chances, 1)
        tokens = 1 + sum(chances[:count])
        return count > 0 and tip.chance * tokens > self.pace.rate * (self.pace.cost(1 + count) + tokens * node)

    def _levels_left(self, chance: float, loss: float) -> int:
        """How many more levels are likely to pay, if the argmax chain goes on losing chance as it has so far."""
        worth = self.pace.break_even
        return max(0, int(math.log(worth / chance) / math.log(loss))) if chance > worth else 0

    def _beam(self, options: list[tuple[Candidate, int]], trees: list[GrowingTree]) -> list[tuple[Candidate, int]]:
        level = max((tree.deepest for tree in trees), default=0) + 1
        if level > self.shape.depth - 1:
            return []
        newest = [option for option in options if option[0].depth == level]
        newest.sort(key=lambda item: (not item[0].spine, -item[0].chance))
        every = range(len(trees))
        return [option for i in every for option in [o for o in newest if o[1] == i][: self.shape.width]]

    def _fill(self, trees: list[GrowingTree]) -> None:
        """Likely children that were never run ride along where that costs less than it may bring."""
        used = sum(len(b.tokens) for b in trees)
        pool = [(c, b) for b in trees for c in b.pool if c.depth <= b.sequence.remaining - 1]
        room = self.limits.nodes - used
        if self.shape.depth:
            pool = [(c, b) for c, b in pool if c.depth == b.deepest + 1]
            room = sum(min(self.shape.width, sum(b is own for _, own in pool)) for b in trees)
        for candidate, tree in sorted(pool, key=lambda item: -item[0].chance)[: max(room, 0)]:
            worth = max(self.pace.rate * self.limits.cost.extra(used, 1), UNLIKELY)
            if not self.shape.depth and candidate.chance <= worth:
                break
            if tree.room(self.limits.capacity) > 0:
                tree.add(candidate)
                used += 1

    def learn(self, sequence: TokenSequence, path: Tensor, choices: Tensor) -> None:
        """What the target chose after each accepted node that the draft had run teaches the calibration."""
        tree, calibration = self.trees[sequence.row], self.calibration[sequence.params.temperature > 0]
        nodes = path.tolist()
        if tree.aside:
            foretold = sum(tree.aside.values()) / calibration.trust
            calibration.compare(sum(node in tree.aside for node in nodes), foretold)
        for node in nodes:
            if node in tree.children:
                bucket, tokens = tree.children[node]
                token = int(choices[node])
                calibration.learn(bucket, tokens.index(token) if token in tokens else None)

    def record_round(self, tokens: int, seconds: float, prefill: bool) -> None:
        """A round is over. After one that read a prompt, what a pass will take is known, so a rate can be guessed."""
        if prefill:
            self.pace.first_guess(self.limits.cost.seconds(FIRST))
        else:
            self.pace.record_round(tokens, seconds)

    def warm(self, widths: Sequence[int] = (1, 2, 4, 8), seconds: float = 1.0) -> None:
        """Measure what levels of some widths cost, so that the first tree already has a sensible shape.

        Row 0 of the cache must be empty."""
        deadline = time.perf_counter() + seconds
        for width in widths:
            taken = []
            for _ in range(3):  # the first may compile, or record
                start = time.perf_counter()
                self._try(width)
                taken.append(time.perf_counter() - start)
            self.pace.levels[width] = min(taken)
            if time.perf_counter() + 4 * (time.perf_counter() - start) > deadline:
                break

    def _try(self, width: int) -> None:
        """A level of `width` nodes, whatever they are."""
        tree = TokenTree(torch.zeros(width, dtype=torch.int64), torch.arange(-1, width - 1))
        self.forward(Nodes.of(tree, 0, 0))
