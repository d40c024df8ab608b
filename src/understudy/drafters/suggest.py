"""What the text itself says of the tokens to come, for a tree search to use.

It suggests a chain of tokens, which the search checks in one level: what a level costs is reading the proposer's weights, so more
nodes in it cost little. A suggested token that the search would not have chosen is dropped. And it speaks for one token after any
node: a copy of 4 bits confuses tokens to which it gives nearly the same score, and texts repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .growing_tree import Candidate, GrowingTree
from .pace import AGREEMENT_DECAY, LIKELIEST, LONGEST

# Values of the option `guess`; auto: where the processor drafts.
WHEN = ("auto", "on", "off")
# Earlier places of the last token that are looked at, the latest first.
PLACES = 64


@dataclass(frozen=True)
class Suggestion:
    """A chain of tokens that the proposer may say next."""

    tokens: Sequence[int] = ()
    # The chance that the proposer says each token and all before it.
    chances: Sequence[float] = ()
    # What the suggester wants to be told again in `learn`: for a text, the length of the match.
    source: int = 0

    def first(self, count: int) -> Suggestion:
        return Suggestion(self.tokens[:count], self.chances[:count], self.source)


NOTHING = Suggestion()


class Suggester(Protocol):
    """Suggests cheaply what the proposer may say: from the text, or with a small trained head in front of it."""

    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        """The token that is likelier after `tip`, any node of the tree, than the proposer knows, and the length of the match that
        says so, at most LONGEST; a length of 0: there is none."""

    def suggest(self, tree: GrowingTree, tip: Candidate, most: int) -> Suggestion:
        """At most `most` tokens that may follow `tip`, the end of the tree's chain of first choices.

        The search may ask for the same tip twice, and check only a part of the answer, or none of it."""

    def learn(self, suggestion: Suggestion, agreed: int) -> None:
        """The proposer said the first `agreed` tokens of what was checked, and another token after them."""


def match(text: Sequence[int] | NDArray[np.int64], longest: int = LONGEST) -> tuple[int, int]:
    """How many of the last tokens of `text` (at most `longest`) stand earlier in it too, and the index after that
    place.

    Of equally long matches, the latest. (0, 0): the last token stands nowhere else."""
    tokens = np.asarray(text)
    ends = np.flatnonzero(tokens[:-1] == tokens[-1])[::-1][:PLACES] if len(tokens) > 1 else np.zeros(0, np.int64)
    alive = ends
    size = 1
    while len(alive) and size < longest:
        earlier = alive[alive >= size]
        earlier = earlier[tokens[earlier - size] == tokens[-1 - size]]
        if not len(earlier):
            break
        alive = earlier
        size += 1
    return (size, int(alive[0]) + 1) if len(alive) else (0, 0)


@dataclass
class TextSuggester:
    """Suggests what followed the last tokens at an earlier place of the text (prompt lookup), and learns how often
    the proposer agrees."""

    # By length of the match, decaying: suggested tokens that the proposer said, and those that were checked.
    agreed: list[float] = field(default_factory=lambda: [0.5 + 0.3 * size for size in range(LONGEST + 1)])
    tried: list[float] = field(default_factory=lambda: [3.0] * (LONGEST + 1))

    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        text = tree.text(tip)
        size, end = match(text)
        return (int(text[end]), size) if size else (-1, 0)

    def suggest(self, tree: GrowingTree, tip: Candidate, most: int) -> Suggestion:
        text = tree.text(tip)
        size, end = match(text)
        if not size:
            return NOTHING
        tokens = text[end : end + most].tolist()
        while len(tokens) < most:  # a text that repeats itself goes on doing so
            tokens += tokens[: most - len(tokens)]
        stop = next((i for i, token in enumerate(tokens) if token in tree.sequence.stop_ids), most)
        chance = min(self.agreed[size] / self.tried[size], LIKELIEST)
        return Suggestion(tokens[:stop], [chance ** (i + 1) for i in range(stop)], size)

    def learn(self, suggestion: Suggestion, agreed: int) -> None:
        size = suggestion.source
        tried = min(agreed + 1, len(suggestion.tokens))
        self.agreed[size] = AGREEMENT_DECAY * self.agreed[size] + agreed
        self.tried[size] = AGREEMENT_DECAY * self.tried[size] + tried
