"""Which nodes of a draft are worth their time: what limits them, what was measured, and what was learned from the
accepted ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

from torch import Tensor

from ..models.cost import PassCost
from ..sequence import TokenSequence
from .growing_tree import MOST_NODES, GrowingTree
from .pace import BONUS, LONGEST, UNLIKELY, Calibration, Pace
from .start import START, Start


@dataclass(frozen=True)
class Shape:
    """A forced shape of every draft; depth 0: what pays decides."""

    # Nodes of a sequence in each level.
    width: int = 0
    # How many levels.
    depth: int = 0


NO_SHAPE = Shape()


def never() -> bool:
    return False


@dataclass(frozen=True)
class Limits:
    """What the caches and the model that verifies set."""

    # Cache slots of a row of the model that proposes.
    capacity: int
    # The most nodes that the trees of one pass have together.
    nodes: int = 128
    # What nodes add to a pass.
    cost: PassCost = field(default_factory=PassCost)
    # Is the link still filling the ring, so that drafting costs nothing?
    filling: Callable[[], bool] = never
    # The most nodes of one sequence's tree, and the most levels below its root.
    tree: int = MOST_NODES
    levels: int = MOST_NODES


def calibrations() -> dict[bool, Calibration]:
    return {sampled: Calibration(bonus=[bonus] * (LONGEST + 1)) for sampled, bonus in BONUS.items()}


@dataclass
class DraftPolicy:
    """What a search asks before it runs a node. One for each drafter; what it learns lasts as long as the drafter."""

    limits: Limits
    shape: Shape = NO_SHAPE
    pace: Pace = field(default_factory=Pace)
    # By whether tokens are sampled: scores then are noisy, and the gaps between them mean something else.
    calibrations: dict[bool, Calibration] = field(default_factory=calibrations)
    # Texts that were drafted for together in the rounds that `pace` knows.
    texts: int = 1
    # What is expected before the first pass.
    start: Start = START
    # Groups of texts that are drafted for at the same time, each of them for a pass of its own; `texts` and `pace` are one group's.
    groups: int = 1
    # What is known of rounds of one group, or of several, while the other way is in use.
    other: tuple[Pace, int] | None = None
    # Held by the one of their threads that decides: what is learned and the texts' own state know no other guard.
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if self.start.pass_nodes:
            self.limits.cost.prior = self.start.pass_nodes

    def split(self, groups: int) -> None:
        """Expect rounds of so many groups: what levels take, and the rate, are others for one than for several."""
        if (groups > 1) != (self.groups > 1):
            now = self.pace, self.texts
            self.pace, self.texts = self.other or (deepcopy(self.pace), self.texts)
            self.other = now
        self.groups = groups

    @property
    def most_nodes(self) -> int:
        """The most nodes that the trees of one pass have together: groups share the memory of a pass, in whole units."""
        unit = self.limits.cost.unit if self.groups > 1 else 1
        return self.limits.nodes // (self.groups * unit) * unit

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Within it the other groups have their `turn`, which the caller holds: a model runs."""
        self.turn.release()
        try:
            yield
        finally:
            self.turn.acquire()

    def serve(self, texts: int, nodes: int) -> None:
        """Expect what rounds of `texts` texts give; those so far had `self.texts`, the latest with `nodes` nodes of all trees."""
        ratio = texts / self.texts
        cost = self.limits.cost
        before = cost.seconds(nodes)
        self.pace.scale(ratio, cost.seconds(round(nodes * ratio)) / before if before else 1.0)
        self.texts = texts

    def calibration(self, sequence: TokenSequence) -> Calibration:
        return self.calibrations[sequence.params.temperature > 0]

    def fill(self, trees: list[GrowingTree]) -> None:
        """Add likely children that were never run, where they cost the pass less time than they may save."""
        used = sum(len(tree.tokens) for tree in trees)
        pool = [(c, tree) for tree in trees for c in tree.pool if c.depth <= tree.levels]
        room = self.most_nodes - used
        if self.shape.depth:
            pool = [(c, tree) for c, tree in pool if c.depth == tree.deepest + 1]
            room = sum(min(self.shape.width, sum(tree is own for _, own in pool)) for tree in trees)
        for candidate, tree in sorted(pool, key=lambda item: -item[0].chance)[: max(room, 0)]:
            least = max(self.pace.rate * self.limits.cost.extra(used, 1), UNLIKELY)
            if not self.shape.depth and candidate.chance <= least:
                break
            if tree.room(self.limits.capacity) > 0:
                tree.add(candidate)
                used += 1

    def learn(self, tree: GrowingTree, path: Tensor, choices: Tensor) -> None:
        """Learn from the exact model's choice after each accepted node that the draft had run.

        path: [m] accepted nodes; choices: [n] the exact model's token after each node of the tree."""
        calibration = self.calibration(tree.sequence)
        for node in path.tolist():
            if node not in tree.children:
                continue
            scores, tokens = tree.children[node]
            token = int(choices[node])
            rank = tokens.index(token) if token in tokens else None
            if node in tree.favoured:
                length, favoured = tree.favoured[node]
                calibration.learn_bonus(length, calibration.chances(scores)[favoured], rank == favoured)
            calibration.learn(scores, rank)

    def record_round(self, tokens: int, seconds: float, prefill: bool) -> None:
        """Learn the rate of the whole loop. After a round that only read prompts, what a pass takes is known, and a rate is
        guessed."""
        if prefill:
            nodes = min(self.start.nodes(self.texts), self.most_nodes)
            self.pace.first_guess(self.limits.cost.seconds(nodes), self.texts, self.start.tokens_per_pass)
        else:
            self.pace.record_round(tokens, seconds)
