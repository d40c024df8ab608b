"""Suggestions in front of a tree search, and the text itself as one who makes them.

A suggester says a chain of tokens, which the search checks in one level: what a level costs is reading the proposer's weights, so
more nodes in it cost little. A suggested token that the search would not have chosen is dropped. And the text speaks for one token
after any node: a copy of 4 bits confuses tokens to which it gives nearly the same score, and texts repeat themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .growing_tree import Candidate, GrowingTree
from .pace import AGREEMENT_DECAY, LIKELIEST, LONGEST, Pace

# Values of the option `guess`; auto: where chains of tokens can be checked.
WHEN = ("auto", "on", "off")
# Earlier places of the last token that are looked at, the latest first.
PLACES = 64


class Origin(NamedTuple):
    """Who suggests a token, and how sure it looks."""

    # "text" or "head": what figures count by.
    name: str
    # Tokens of one kind are equally likely to be right, as far as is known. Of a text, the length of the match.
    kind: int


class Other(NamedTuple):
    """A token that the proposer may say in place of the one of a chain."""

    # Tokens of the chain before it.
    after: int
    token: int
    # The chance that the proposer says those tokens and it.
    chance: float
    origin: Origin


@dataclass(frozen=True)
class Suggestion:
    """A chain of tokens that the proposer may say next, and others in their place."""

    tokens: Sequence[int] = ()
    # The chance that the proposer says each token and all before it.
    chances: Sequence[float] = ()
    # Where each token comes from.
    sources: Sequence[Origin] = ()
    # The likeliest first.
    others: Sequence[Other] = ()

    @property
    def all_chances(self) -> list[float]:
        """The chances of the chain's tokens and of the others."""
        return [*self.chances, *(other.chance for other in self.others)]

    def first(self, count: int) -> Suggestion:
        """What lies no deeper than `count` tokens."""
        others = [other for other in self.others if other.after < count]
        return Suggestion(self.tokens[:count], self.chances[:count], self.sources[:count], others)

    def likelier(self, least: float, most: int) -> Suggestion:
        """The tokens of a chance of `least` or more, at most so many."""
        count = min(sum(chance >= least for chance in self.chances), most)
        others = [other for other in self.others if other.after <= count and other.chance >= least]
        return Suggestion(self.tokens[:count], self.chances[:count], self.sources[:count], others[: most - count])


NOTHING = Suggestion()


@dataclass(frozen=True)
class Checked:
    """What the proposer said of a suggestion: the first `agreed` tokens of its chain, then `other`, and then another token; None:
    it said no other of the suggestion."""

    suggestion: Suggestion
    agreed: int
    other: Other | None = None

    @property
    def chain(self) -> list[tuple[Origin, int, int]]:
        """For each run of the chain's tokens from one source: it, how many of them the proposer said, and how many it was asked
        for."""
        found = []
        done = 0
        for source, run in groupby(self.suggestion.sources[: self.agreed + 1]):
            tried = len(list(run))
            found.append((source, min(self.agreed - done, tried), tried))
            done += tried
        return found

    @property
    def others(self) -> list[tuple[Origin, bool]]:
        """For each of the others that the proposer was asked for: its origin, and whether it was right."""
        return [(other.origin, other is self.other) for other in self.suggestion.others if other.after <= self.agreed]

    @property
    def suggested(self) -> list[str]:
        """The sources of all tokens that were checked."""
        suggestion = self.suggestion
        return [source.name for source in (*suggestion.sources, *(other.origin for other in suggestion.others))]

    @property
    def right(self) -> list[str]:
        """The sources of those that were right."""
        said = [source.name for source in self.suggestion.sources[: self.agreed]]
        return said if self.other is None else [*said, self.other.origin.name]


class Tip(NamedTuple):
    """The end of a tree's chain of first choices, and how many tokens may be suggested after it."""

    tree: GrowingTree
    candidate: Candidate
    most: int

    @classmethod
    def of(cls, tree: GrowingTree, candidate: Candidate, capacity: int, most: int) -> Tip:
        """The end `candidate` of the chain of `tree`, in a cache of `capacity` slots a row: at most `most` tokens may follow, whose
        own children could still be used."""
        return cls(tree, candidate, min(tree.room(capacity) - 1, tree.levels - 1 - candidate.depth, most))


class Promise(NamedTuple):
    """What may be expected of a suggestion: the chances of its tokens, and the seconds that it takes to make."""

    chances: Sequence[float] = ()
    seconds: float = 0.0


class Suggester(Protocol):
    """Suggests cheaply what the proposer may say: from the text, or with a small trained head in front of it."""

    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        """The token that is likelier after `tip`, any node of the tree, than the proposer knows, and the length of the match that
        says so, at most LONGEST; a length of 0: there is none."""

    def promise(self, tip: Tip, pace: Pace) -> Promise:
        """About what `suggest` would say after `tip`, found out at no cost."""

    def suggest(self, tips: Sequence[Tip], pace: Pace) -> list[Suggestion]:
        """For each of `tips`, of different trees, at most so many tokens as it has room for.

        The search may check only a part of the answer, or none of it. Who takes time tells `pace` how much."""

    def saw(self, tree: GrowingTree, places: Sequence[int]) -> None:
        """The proposer ran the next nodes of the chain of first choices of `tree`, at `places` of its latest level."""

    def learn(self, tree: GrowingTree, checked: Checked) -> None:
        """What was suggested after the tip of `tree` was checked."""


def worth_checking(found: Sequence[Suggestion], most: int, pays: Callable[[Sequence[float]], int]) -> list[Suggestion]:
    """Of what was `found` for different texts, the likeliest tokens of all together, at most `most`: as many as `pays` says of
    their chances, best first."""
    chances = sorted((chance for suggestion in found for chance in suggestion.all_chances), reverse=True)[: max(most, 0)]
    count = pays(chances)
    least = chances[count - 1] if count else 2.0
    kept = []
    for suggestion in found:
        kept.append(suggestion.likelier(least, count))
        count -= len(kept[-1].all_chances)
    return kept


@dataclass
class HitRates:
    """How often the proposer says a suggested token, by kind of source. What was seen loses weight with each suggestion."""

    # By kind: suggested tokens that the proposer said, and those that were checked; before any was seen, what is believed.
    agreed: list[float]
    tried: list[float]

    @classmethod
    def believing(cls, chances: Sequence[float], weight: float) -> HitRates:
        """Rates of so many kinds, whose `chances` are believed as if `weight` tokens of each had been seen."""
        return cls([weight * chance for chance in chances], [weight] * len(chances))

    def chance(self, kind: int) -> float:
        """The chance that the proposer says a token of this kind."""
        return min(self.agreed[kind] / self.tried[kind], LIKELIEST)

    def learn(self, kind: int, agreed: float, tried: int) -> None:
        """Learn that of `tried` tokens of this kind the proposer said `agreed`."""
        self.agreed[kind] = AGREEMENT_DECAY * self.agreed[kind] + agreed
        self.tried[kind] = AGREEMENT_DECAY * self.tried[kind] + tried


def match(text: Sequence[int] | NDArray[np.int64], longest: int = LONGEST, more: Sequence[int] = ()) -> tuple[int, int]:
    """How many of the last tokens of `text` with `more` after it (at most `longest`) stand earlier in it too, and the index after
    that place.

    Of equally long matches, the latest. (0, 0): the last token stands nowhere else."""
    from ..kernels.choosing import match as found  # numba: not for those who only read these names

    return found(np.asarray(text, dtype=np.int64), more, longest, PLACES)


TEXT = "text"
# Before anything was seen: the chance that the proposer says what followed a match, by its length, and the weight of that belief.
BELIEVED = tuple((0.5 + 0.3 * size) / 3 for size in range(LONGEST + 1))
BELIEF_WEIGHT = 3.0


def _at(past: NDArray[np.int64], path: Sequence[int], index: int) -> int:
    """The token at `index` of `past` with `path` after it."""
    return int(past[index]) if index < len(past) else path[index - len(past)]


@dataclass
class TextSuggester:
    """Suggests what followed the last tokens at an earlier place of the text (prompt lookup), and learns how often
    the proposer agrees."""

    # By length of the match.
    rates: HitRates = field(default_factory=lambda: HitRates.believing(BELIEVED, BELIEF_WEIGHT))

    def favoured(self, tree: GrowingTree, tip: Candidate) -> tuple[int, int]:
        path = tree.path(tip)
        size, end = match(tree.past, more=path)
        return (_at(tree.past, path, end), size) if size else (-1, 0)

    def promise(self, tip: Tip, pace: Pace) -> Promise:
        return Promise(self.after(tip).chances)

    def suggest(self, tips: Sequence[Tip], pace: Pace) -> list[Suggestion]:
        return [self.after(tip) for tip in tips]

    def after(self, tip: Tip, more: Sequence[int] = ()) -> Suggestion:
        """What followed the text up to `tip`, and the tokens `more` after it, at its latest earlier place."""
        past, path = tip.tree.past, [*tip.tree.path(tip.candidate), *more]
        size, end = match(past, more=path)
        most = tip.most - len(more)
        if not size or most <= 0:
            return NOTHING
        tokens = [*past[end : end + most].tolist(), *path[max(end - len(past), 0) :]][:most]
        # A text that repeats itself goes on doing so.
        while len(tokens) < most:
            tokens += tokens[: most - len(tokens)]
        stop = next((i for i, token in enumerate(tokens) if token in tip.tree.sequence.stop_ids), most)
        chance = self.rates.chance(size)
        return Suggestion(tokens[:stop], [chance ** (i + 1) for i in range(stop)], [Origin(TEXT, size)] * stop)

    def saw(self, tree: GrowingTree, places: Sequence[int]) -> None: ...

    def learn(self, tree: GrowingTree, checked: Checked) -> None:
        for source, said, tried in checked.chain:
            self.rates.learn(source.kind, said, tried)


class TextSpeaker(TextSuggester):
    """The text in front of a proposer that can check no chains: it speaks for likely tokens, and suggests none."""

    def promise(self, tip: Tip, pace: Pace) -> Promise:
        return Promise()

    def suggest(self, tips: Sequence[Tip], pace: Pace) -> list[Suggestion]:
        return [NOTHING] * len(tips)
