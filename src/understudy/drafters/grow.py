"""Growing trees with a model: the one search of every model-based drafter.

Best first: each level runs the nodes most likely to be on the target's path, wherever in the tree they are, the tip of the
argmax chain always among them; its width and the depth follow plan.pace. Children that were never run still join where they pay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..plan.pace import RANKS, Calibration, Pace, PassCost, bucket_of
from ..row import Row
from ..sampling import scored
from ..tree import Nodes, TokenTree

MOST_NODES = 256
WIDEST = 16
FIRST = 32  # nodes that a first tree may well have
UNLIKELY = 0.01  # what has less of a chance is not verified even for nothing


@dataclass(frozen=True)
class Candidate:
    """A token that may follow `parent`: the chance that the target's path goes through it, and if it is on the argmax chain."""

    chance: float
    parent: int
    token: int
    depth: int
    spine: bool


@dataclass
class Branch:
    """One row's growing tree. `children[i]` is the margin bucket and the best tokens after node i, for nodes that were run."""

    row: Row
    length: int
    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    pool: list[Candidate] = field(default_factory=list)
    children: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    aside: dict[int, float] = field(default_factory=dict)  # nodes off the argmax chain, and their chances
    deepest: int = 0

    @property
    def tree(self) -> TokenTree:
        return TokenTree.of(self.tokens, self.parents)

    def add(self, candidate: Candidate) -> int:
        self.pool.remove(candidate)
        self.tokens.append(candidate.token)
        self.parents.append(candidate.parent)
        if not candidate.spine:
            self.aside[len(self.tokens) - 1] = candidate.chance
        self.deepest = max(self.deepest, candidate.depth)
        return len(self.tokens) - 1

    def expandable(self) -> list[Candidate]:
        """Candidates whose own children could still be used: not at the token budget, not after a stop token."""
        return [c for c in self.pool if c.depth < self.row.remaining - 1 and c.token not in self.row.stop_ids]


@dataclass(frozen=True)
class Shape:
    """A fixed beam, when one is forced; depth 0: decided by the pace."""

    width: int = 0
    depth: int = 0


NO_SHAPE = Shape()


@dataclass(frozen=True)
class Limits:
    """What the model that verifies sets: cache slots of a row, the most nodes of a pass, what nodes add to a pass, and whether
    the link is still filling the ring, so that drafting costs nothing."""

    capacity: int
    nodes: int = 128
    cost: PassCost = field(default_factory=PassCost)
    filling: Callable[[], bool] = lambda: False


class Grower:
    """`forward(nodes)` -> logits of the draft model."""

    def __init__(self, forward: Callable[[Nodes], Tensor], pace: Pace, limits: Limits, shape: Shape = NO_SHAPE):
        self.forward, self.pace, self.limits, self.shape = forward, pace, limits, shape
        self.calibration = {False: Calibration(), True: Calibration()}
        self.branches: dict[int, Branch] = {}

    def grow(self, rows: Sequence[Row], lengths: Sequence[int]) -> list[TokenTree]:
        """A tree for each row; `lengths[i]` tokens of row i are in the draft's cache, its last token is the root."""
        branches = [Branch(row, length, row.tokens[-1:]) for row, length in zip(rows, lengths, strict=True)]
        self.branches = {branch.row.index: branch for branch in branches}
        fresh = {
            i: [Candidate(1.0, -1, branch.tokens[0], 0, True)]
            for i, branch in enumerate(branches)
            if branch.row.remaining > 1
        }
        level = 0
        while fresh:
            self._run([(branches[i], some) for i, some in fresh.items()])
            level += 1
            fresh = self._choose(branches, level)
        self._fill(branches)
        return [branch.tree for branch in branches]

    def _run(self, work: list[tuple[Branch, list[Candidate]]]) -> None:
        """One forward over the newest nodes of each branch; their best children join the pools."""
        start = time.perf_counter()
        nodes = [Nodes.of(b.tree, b.row.index, b.length, first=len(b.tokens) - len(some)) for b, some in work]
        flat = Nodes.join(nodes)
        logits = self.forward(flat)
        at = 0
        for (branch, some), part in zip(work, nodes, strict=True):
            after = part.positions.to(logits.device) + 1
            pieces = scored(logits[at : at + len(part)], branch.row.params, after)
            best = [scores.topk(min(RANKS, scores.shape[-1]), dim=-1) for scores in pieces]
            values, tokens = (torch.cat([getattr(b, name) for b in best]).tolist() for name in ("values", "indices"))
            first = len(branch.tokens) - len(some)
            for i, candidate in enumerate(some):
                self._offspring(branch, first + i, candidate, values[i], tokens[i])
            at += len(part)
        self.pace.level(len(flat), time.perf_counter() - start)

    def _offspring(
        self, branch: Branch, node: int, candidate: Candidate, scores: list[float], tokens: list[int]
    ) -> None:
        finite = [s for s in scores if s > -float("inf")]
        branch.children[node] = (
            bucket_of(finite[0] - finite[1] if len(finite) > 1 else float("inf")),
            tokens[: len(finite)],
        )
        calibration = self.calibration[branch.row.params.temperature > 0]
        for rank, (chance, token) in enumerate(zip(calibration.chances(finite), tokens, strict=False)):
            spine = candidate.spine and rank == 0
            through = candidate.chance * chance * (calibration.trust if candidate.spine and not spine else 1.0)
            branch.pool.append(Candidate(through, node, token, candidate.depth + 1, spine))

    def _choose(self, branches: list[Branch], level: int) -> dict[int, list[Candidate]]:
        """The candidates the next level runs, by branch; they become nodes. Empty: drafting is over."""
        room = [min(MOST_NODES, self.limits.capacity - b.length) - len(b.tokens) for b in branches]
        options = [(c, i) for i, b in enumerate(branches) if room[i] > 0 for c in b.expandable()]
        if self.shape.depth:
            chosen = self._beam(options, len(branches), level)
        else:
            chosen = self._best(options, branches, level)
        result: dict[int, list[Candidate]] = {}
        for candidate, i in chosen:
            if room[i] > 0:
                room[i] -= 1
                branches[i].add(candidate)
                result.setdefault(i, []).append(candidate)
        return result

    def _best(
        self, options: list[tuple[Candidate, int]], branches: list[Branch], level: int
    ) -> list[tuple[Candidate, int]]:
        """The likeliest, as many as pay and as the pass has room for when the levels to come want their nodes too."""
        tips = [option for option in options if option[0].spine]
        if not tips:
            return []
        best = max(tip.chance for tip, _ in tips)
        loss = min(best ** (1 / level), 0.98)
        left = self._levels_left(best, loss)
        used = sum(len(b.tokens) for b in branches)
        room = self.limits.nodes - used
        if room <= 0:
            return []
        options.sort(key=lambda item: (-item[0].chance, not item[0].spine))
        most = max(room // (1 + left), len(tips))
        most = min(most, room, WIDEST * len(branches))
        chances, node = [c.chance for c, _ in options], self.limits.cost.share(used)
        chosen = options[: self.pace.width(chances, 1, most, self.limits.filling(), node)]
        if chosen and not any(c.spine for c, _ in chosen):
            chosen[-1] = max(tips, key=lambda item: item[0].chance)
        return chosen

    def _levels_left(self, chance: float, loss: float) -> int:
        """How many more levels are likely to pay, if the argmax chain goes on losing chance as it has so far."""
        worth = self.pace.worth
        return max(0, int(math.log(worth / chance) / math.log(loss))) if chance > worth else 0

    def _beam(self, options: list[tuple[Candidate, int]], count: int, level: int) -> list[tuple[Candidate, int]]:
        if level > self.shape.depth - 1:
            return []
        newest = [option for option in options if option[0].depth == level]
        newest.sort(key=lambda item: (not item[0].spine, -item[0].chance))
        return [option for i in range(count) for option in [o for o in newest if o[1] == i][: self.shape.width]]

    def _fill(self, branches: list[Branch]) -> None:
        """Likely children that were never run ride along where that costs less than it may bring."""
        used = sum(len(b.tokens) for b in branches)
        pool = [(c, b) for b in branches for c in b.pool if c.depth <= b.row.remaining - 1]
        room = self.limits.nodes - used
        if self.shape.depth:
            pool = [(c, b) for c, b in pool if c.depth == b.deepest + 1]
            room = sum(min(self.shape.width, sum(b is own for _, own in pool)) for b in branches)
        for candidate, branch in sorted(pool, key=lambda item: -item[0].chance)[: max(room, 0)]:
            worth = max(self.pace.rate * self.limits.cost.extra(used, 1), UNLIKELY)
            if not self.shape.depth and candidate.chance <= worth:
                break
            if len(branch.tokens) < min(MOST_NODES, self.limits.capacity - branch.length):
                branch.add(candidate)
                used += 1

    def learn(self, row: Row, path: Tensor, choices: Tensor) -> None:
        """What the target chose after each accepted node that the draft had run teaches the calibration."""
        branch, calibration = self.branches[row.index], self.calibration[row.params.temperature > 0]
        nodes = path.tolist()
        if branch.aside:
            foretold = sum(branch.aside.values()) / calibration.trust
            calibration.compare(sum(node in branch.aside for node in nodes), foretold)
        for node in nodes:
            if node in branch.children:
                bucket, tokens = branch.children[node]
                token = int(choices[node])
                calibration.learn(bucket, tokens.index(token) if token in tokens else None)

    def paced(self, tokens: int, seconds: float, prefill: bool) -> None:
        """A round is over. After one that read a prompt, what a pass will take is known, so a rate can be guessed."""
        if prefill:
            self.pace.first_guess(self.limits.cost.seconds(FIRST))
        else:
            self.pace.round(tokens, seconds)

    def warm(self, widths: Sequence[int] = (1, 2, 4, 8), seconds: float = 1.0) -> None:
        """Measure what levels of some widths cost, so that the first tree already has a sensible shape. Row 0 must be empty."""
        deadline = time.perf_counter() + seconds
        for width in widths:
            tree = TokenTree(torch.zeros(width, dtype=torch.int64), torch.arange(-1, width - 1))
            taken = []
            for _ in range(3):
                start = time.perf_counter()
                self.forward(Nodes.of(tree, 0, 0))
                taken.append(time.perf_counter() - start)
            self.pace.levels[width] = min(taken)
            if time.perf_counter() + 4 * (time.perf_counter() - start) > deadline:
                break
