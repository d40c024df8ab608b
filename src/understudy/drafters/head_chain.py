"""What a head in front of the substitute has read of a tree, and what it suggests after the end of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .growing_tree import Candidate, GrowingTree
from .suggest import Origin, Other, Suggestion, Tip


@dataclass
class Trunk:
    """The chain of first choices of a tree, as far as the proposer has run it."""

    tree: GrowingTree
    # [m, taps, hidden size] pieces: the proposer's hidden states at its nodes, the root first.
    hidden: list[Tensor] = field(default_factory=list)
    # Nodes below the root that the head has read. None: not even the root.
    read: int | None = None
    # `DraftHead.lag` of the head.
    lag: int = 0

    def unread(self, tip: Candidate, lead: tuple[list[int], Tensor]) -> tuple[list[int], Tensor]:
        """The tokens of the nodes that the head has not read, up to `tip`, and the hidden states at the node before each; in front,
        `lag` tokens that it has read. `lead`: the same of the end of the text, of which it may take these."""
        assert self.read is not None
        start = max(self.read + len(lead[0]) - self.lag, 0)
        tokens = [*lead[0], *self.tree.path(tip)][start:]
        return tokens, torch.cat([lead[1], *self.hidden])[start : start + len(tokens)]


@dataclass
class Chain:
    """What is suggested after a tip so far, and what the text would say after that."""

    tip: Tip
    text: Suggestion
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    sources: list[Origin] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)

    @property
    def chance(self) -> float:
        """The chance that the proposer says all of it."""
        return self.chances[-1] if self.chances else 1.0

    @property
    def sampled(self) -> bool:
        return self.tip.tree.sequence.params.temperature > 0

    @property
    def end(self) -> int:
        """The position of its last token, or of the tip."""
        return self.tip.tree.length + self.tip.candidate.depth + len(self.tokens)

    @property
    def last(self) -> int:
        return self.tokens[-1] if self.tokens else self.tip.candidate.token

    @property
    def over(self) -> bool:
        """May nothing follow?"""
        return len(self.tokens) >= self.tip.most or bool(self.tokens and self.last in self.tip.tree.sequence.stop_ids)

    def add(self, token: int, chance: float, origin: Origin, others: Sequence[tuple[int, float, Origin]]) -> None:
        """Suggest `token` next, or one of `others`, which have a `chance` each after what is suggested so far."""
        before, after = self.chance, len(self.tokens)
        stops = self.tip.tree.sequence.stop_ids
        self.others += [Other(after, said, before * own, source) for said, own, source in others if said not in stops]
        self.chances.append(before * chance)
        self.tokens.append(token)
        self.sources.append(origin)

    def whole(self) -> Suggestion:
        """The chain, what the text says after it, and others; a token that ends the text is not suggested."""
        others = sorted(self.others, key=lambda other: -other.chance)
        tokens, chances, sources = list(self.tokens), list(self.chances), list(self.sources)
        if tokens and tokens[-1] in self.tip.tree.sequence.stop_ids:
            return Suggestion(tokens[:-1], chances[:-1], sources[:-1], others)
        chances += [self.chance * chance for chance in self.text.chances]
        return Suggestion([*tokens, *self.text.tokens], chances, [*sources, *self.text.sources], others)
