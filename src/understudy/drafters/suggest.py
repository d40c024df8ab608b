"""Tokens that the text itself suggests (prompt lookup), for the draft to check many of them in one level instead of one in each.

Reading its weights is what a level costs, so some rows more cost little. What the draft would not have said itself is dropped,
so trees are as they would have been, only sooner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .growing_tree import Candidate, GrowingTree

WHEN = ("auto", "on", "off")  # auto: where the processor drafts
LONGEST = 8  # tokens of a match that are told apart
PLACES = 64  # earlier places that are looked at, the latest first
SURE, FADE = 0.98, 0.98


def match(text: Sequence[int], longest: int = LONGEST) -> tuple[int, int]:
    """How many of the last tokens of `text` (at most `longest`) stand earlier in it too, and where that ends: the latest of the
    longest such places. (0, 0): nowhere."""
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


@dataclass(frozen=True)
class Suggestion:
    """Tokens that may come next, from a match of `size` tokens; the chance that the draft says each, and those before it."""

    size: int = 0
    tokens: Sequence[int] = ()
    chances: Sequence[float] = ()

    def first(self, count: int) -> Suggestion:
        return Suggestion(self.size, self.tokens[:count], self.chances[:count])


NOTHING = Suggestion()


@dataclass
class TextSuggester:
    """How often the draft agreed with a guess, by the length of the match it came from."""

    agreed: list[float] = field(default_factory=lambda: [0.5 + 0.3 * size for size in range(LONGEST + 1)])
    tried: list[float] = field(default_factory=lambda: [3.0] * (LONGEST + 1))

    def copied(self, tree: GrowingTree, tip: Candidate, most: int) -> Suggestion:
        """At most `most` tokens that may follow `tip`, as far as their children could still be used."""
        most = min(most, tree.sequence.remaining - 2 - tip.depth)
        text = tree.text(tip) if most > 0 else []
        size, end = match(text)
        if not size:
            return NOTHING
        tokens = text[end : end + most]
        while len(tokens) < most:  # a text that repeats itself goes on doing so
            tokens += tokens[: most - len(tokens)]
        stop = next((i for i, token in enumerate(tokens) if token in tree.sequence.stop_ids), most)
        chance = min(self.agreed[size] / self.tried[size], SURE)
        return Suggestion(size, tokens[:stop], [chance ** (i + 1) for i in range(stop)])

    def learn(self, size: int, agreed: int, tried: int) -> None:
        """Of `tried` guesses after a match of `size`, checked one after another, the draft said `agreed`."""
        self.agreed[size] = FADE * self.agreed[size] + agreed
        self.tried[size] = FADE * self.tried[size] + tried
