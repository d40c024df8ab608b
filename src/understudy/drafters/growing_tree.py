"""One sequence's tree while it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..sequence import TokenSequence
from ..tree import TokenTree

MOST_NODES = 320  # of a sequence: the 6 x 48 of SubSpec (arXiv 2509.18344), and some more


@dataclass(frozen=True)
class Candidate:
    """A token that may follow `parent`: the chance that the target's path goes through it, and if it is on the argmax chain."""

    chance: float
    parent: int
    token: int
    depth: int
    spine: bool


@dataclass
class GrowingTree:
    """One sequence's growing tree. `children[i]` is the margin bucket and the best tokens after node i, for nodes that were run."""

    sequence: TokenSequence
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

    def add(self, candidate: Candidate) -> None:
        self.pool.remove(candidate)
        self.tokens.append(candidate.token)
        self.parents.append(candidate.parent)
        if not candidate.spine:
            self.aside[len(self.tokens) - 1] = candidate.chance
        self.deepest = max(self.deepest, candidate.depth)

    def text(self, tip: Candidate) -> list[int]:
        """The sequence's, as far as `tip`."""
        path, node = [tip.token], tip.parent
        while node >= 0:
            path.append(self.tokens[node])
            node = self.parents[node]
        return self.sequence.tokens[:-1] + path[::-1]

    def guess(self, tokens: Sequence[int], parent: int) -> None:
        """Put a chain after node `parent`, for `agree` or `drop` to say if it stays."""
        for token in tokens:
            self.tokens.append(token)
            self.parents.append(parent)
            parent = len(self.tokens) - 1

    def agree(self, node: int) -> Candidate | None:
        """The candidate that node `node`, a guess, turned out to be: what the draft puts first after the argmax chain."""
        best = next((c for c in self.pool if c.parent == self.parents[node] and c.spine), None)
        if best is None or best.token != self.tokens[node]:
            return None
        self.pool.remove(best)
        self.deepest = max(self.deepest, best.depth)
        return best

    def drop(self, first: int) -> None:
        """Nodes from `first` on were never there."""
        del self.tokens[first:], self.parents[first:]

    def room(self, capacity: int) -> int:
        """How many more nodes it may have, in a cache of `capacity` slots."""
        return min(MOST_NODES, capacity - self.length) - len(self.tokens)

    def expandable(self) -> list[Candidate]:
        """Candidates whose own children could still be used: not at the token budget, not after a stop token."""
        return [c for c in self.pool if c.depth < self.sequence.remaining - 1 and c.token not in self.sequence.stop_ids]
