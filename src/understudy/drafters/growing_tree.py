"""The tree of one sequence while a search grows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..sequence import TokenSequence
from ..tree import DraftCounts, Nodes, TokenTree
from .pace import LONGEST

# The most nodes of one sequence's tree: the 6 x 48 of SubSpec (arXiv 2509.18344), and a few more.
MOST_NODES = 320


class Candidate(NamedTuple):
    """A token that may become a node."""

    # The chance that the target's path goes through it.
    chance: float
    # The node that it follows; -1: it is the root.
    parent: int
    token: int
    # Edges between the root and it.
    depth: int
    # Is it on the chain of the proposer's first choices?
    spine: bool


@dataclass
class GrowingTree:
    """The nodes of one sequence's tree so far, and the candidates for more."""

    sequence: TokenSequence
    # Tokens of the sequence in the proposer's cache: node i lies at slot `length + i`.
    length: int
    # Token and parent of each node; node 0 is the root.
    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    # Children of nodes that were run, which are no nodes themselves.
    pool: list[Candidate] = field(default_factory=list)
    # For each node that was run: the scores and tokens of its best children, best first.
    children: dict[int, tuple[list[float], list[int]]] = field(default_factory=dict)
    # For nodes after which the text speaks for one of these children: the length of the match, and the child's rank.
    favoured: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Guesses that were wrong and have later nodes behind them: no node follows them, and they go when the tree is done.
    wrong: set[int] = field(default_factory=set)
    # The depth of the deepest node.
    deepest: int = 0
    # Nodes at most, and edges between the root and a node at most, that the caches have room for.
    most_nodes: int = MOST_NODES
    most_levels: int = MOST_NODES
    # Levels that had nodes of it.
    levels_run: int = 0
    # Nodes that they ran, wrong guesses among them.
    nodes_run: int = 0
    # Levels that were run ahead for it, beside the pass before, and whether it went on from them.
    ahead_levels: int = 0
    ahead_used: bool = False
    # By source: suggested tokens that were checked, and those that the proposer said too.
    suggested: Counter[str] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)
    # Of each node that `nodes` was asked for: its depth, and the nodes between it and the straight line from the root, itself too.
    _places: list[tuple[int, tuple[int, ...]]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def tree(self) -> TokenTree:
        used, dropped = int(self.ahead_used), int(self.ahead_levels > 0 and not self.ahead_used)
        suggested, agreed = dict(self.suggested), dict(self.agreed)
        counts = DraftCounts(self.levels_run, self.nodes_run, suggested, agreed, self.ahead_levels, used, dropped)
        return TokenTree.of(self.tokens, self.parents, counts)

    def nodes(self, first: int) -> Nodes:
        """The nodes from `first` on, as `Nodes.of` of `tree` has them, with tails as wide as theirs. None before `first` may have
        changed since the call before, as while levels are added."""
        known = self._places
        del known[first:]
        for node in range(len(known), len(self.tokens)):
            depth, path = known[self.parents[node]] if node else (-1, ())
            # the straight line: the first child of the root, its first one, and so on, as long as they are numbered so
            known.append((depth + 1, (*path, node) if path or depth + 1 != node else ()))
        own, length, tokens = known[first:], self.length, self.tokens[first:]
        positions = [length + depth for depth, _ in own]
        prefix = [length + depth + 1 - len(path) for depth, path in own]
        slots = range(length + first, length + len(self.tokens))
        flat = torch.tensor([tokens, [self.sequence.row] * len(own), list(slots), positions, prefix])
        wide = max(len(path) for _, path in own)
        tails = [[*(length + node for node in path), *[-1] * (wide - len(path))] for _, path in own]
        return Nodes(flat[0], flat[1], flat[2], flat[3], flat[4], torch.tensor(tails, dtype=torch.int64).view(len(own), wide))

    def add(self, candidate: Candidate) -> None:
        """Make a candidate of the pool a node."""
        self.pool.remove(candidate)
        self.tokens.append(candidate.token)
        self.parents.append(candidate.parent)
        self.deepest = max(self.deepest, candidate.depth)

    @cached_property
    def past(self) -> NDArray[np.int64]:
        """The tokens of the sequence, after those that it is predicted to repeat."""
        return np.asarray(self.sequence.lookup(LONGEST), dtype=np.int64)

    def path(self, tip: Candidate) -> list[int]:
        """The tokens between the root and `tip`: its own is the last, that of the root is not among them."""
        if tip.parent < 0:
            return []
        path = [tip.token]
        node = tip.parent
        while node > 0:
            path.append(self.tokens[node])
            node = self.parents[node]
        return path[::-1]

    def guess(self, tokens: Sequence[int], parent: int) -> None:
        """Add a chain of guesses after node `parent`. Each must be confirmed by `agree` or removed by `drop`."""
        for token in tokens:
            self.tokens.append(token)
            self.parents.append(parent)
            parent = len(self.tokens) - 1

    def agree(self, node: int) -> Candidate | None:
        """If guess `node` is the proposer's own first choice after the chain, take that candidate from the pool;
        None if not."""
        parent = self.parents[node]
        # those of the newest nodes are the last
        best = next((c for c in reversed(self.pool) if c.spine and c.parent == parent), None)
        if best is None or best.token != self.tokens[node]:
            return None
        self.pool.remove(best)
        self.deepest = max(self.deepest, best.depth)
        return best

    def drop(self, nodes: Sequence[int]) -> None:
        """Remove guessed `nodes`, which no other node follows. Those with other nodes behind them keep their places until `settle`,
        since the proposer has keys and values there."""
        self.wrong.update(nodes)
        while len(self.tokens) - 1 in self.wrong:
            self.wrong.remove(len(self.tokens) - 1)
            del self.tokens[-1], self.parents[-1]

    @property
    def size(self) -> int:
        """Nodes, without guesses that were wrong."""
        return len(self.tokens) - len(self.wrong)

    def settle(self) -> None:
        """Number the nodes without guesses that were wrong: the tree is done, and no proposer runs more of it."""
        if not self.wrong:
            return
        left = [node for node in range(len(self.tokens)) if node not in self.wrong]
        number = {old: new for new, old in enumerate(left)} | {-1: -1}
        self.tokens = [self.tokens[node] for node in left]
        self.parents = [number[self.parents[node]] for node in left]
        self.pool = [candidate._replace(parent=number[candidate.parent]) for candidate in self.pool]
        self.children = {number[node]: children for node, children in self.children.items()}
        self.favoured = {number[node]: favoured for node, favoured in self.favoured.items()}
        self.wrong.clear()

    def room(self, capacity: int) -> int:
        """How many more nodes it may have, in a cache of `capacity` slots a row."""
        return min(self.most_nodes, capacity - self.length) - len(self.tokens)

    @property
    def levels(self) -> int:
        """How many levels below the root it may have."""
        return min(self.sequence.remaining - 1, self.most_levels)

    def expandable(self) -> list[Candidate]:
        """Candidates with children that could still be used: not at the token budget, not after a stop token."""
        levels, stops = self.levels, self.sequence.stop_ids
        return [c for c in self.pool if c.depth < levels and c.token not in stops]
