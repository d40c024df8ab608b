"""How long a reply may reason: once its budget is spent, the mark that ends the reasoning is all that may follow.

What is forced after a place depends on the tokens that lead there alone, so nodes of a tree know it as the text itself does, and
drafted text stays the text that is had without drafting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from .errors import UsageError

# What messages call a budget that is given in Python.
NAME = "reasoning_budget"
# Tokens beyond the budget that a character may take to be whole: it has four bytes at most.
MOST_WAITING = 3


@dataclass(frozen=True)
class ReasoningBudget:
    """How many tokens of a generated text may be reasoning, all its reasonings together, and the marks of the model around one.

    Raises UsageError, in a line that begins with `name`, for values that make no sense."""

    # Tokens between the marks; at 0 a reasoning ends where it begins.
    tokens: int
    # What a reasoning begins and ends with.
    opened: str = "<think>"
    closed: str = "</think>"
    # Whether the prompt has begun one; None: if its last mark is the one that begins it.
    begun: bool | None = None
    # What messages call it: the field that it came from.
    name: str = field(default=NAME, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, Integral) or self.tokens < 0:
            raise UsageError(f"{self.name} must be a number of tokens, 0 or more, got {self.tokens!r}.")
        if not all(isinstance(mark, str) and mark for mark in (self.opened, self.closed)) or self.opened == self.closed:
            raise UsageError(f"{self.name} needs two marks that differ, got {self.opened!r} and {self.closed!r}.")


@dataclass(frozen=True)
class ReasoningPlace:
    """Where a text stands after one of its tokens."""

    # Is it within a reasoning?
    within: bool
    # Tokens of reasoning up to here.
    spent: int = 0
    # Its last bytes, as far as a mark or a character may have begun in them.
    tail: bytes = b""
    # How many tokens of the closing mark were forced, the last one here.
    forced: int = 0


class ReasoningState:
    """Where the text of one sequence stands in its budget.

    `closing`: the tokens that write the mark at the end of a reasoning; `data` gives the bytes of a token."""

    def __init__(self, budget: ReasoningBudget, closing: Sequence[int], data: Callable[[int], bytes], begun: bool):
        self._budget = budget
        self._marks = {False: budget.opened.encode(), True: budget.closed.encode()}
        self._reach = max(*map(len, self._marks.values()), MOST_WAITING + 1) - 1
        self._closing = tuple(closing)
        self._data = data
        self._place = ReasoningPlace(begun)
        # Tokens of the text that `_place` knows of.
        self._read = 0
        # By path after the text, as far as it was asked for.
        self._known: dict[tuple[int, ...], ReasoningPlace] = {(): self._place}

    def follow(self, text: Sequence[int]) -> None:
        """Go on to the end of `text`, all tokens that were generated so far."""
        for token in text[self._read :]:
            self._place = self._after(self._place, token)
        if len(text) > self._read:
            self._read = len(text)
            self._known = {(): self._place}

    def forced(self, path: Sequence[int]) -> int | None:
        """The only token that may follow the text and `path` after it; None: any may."""
        if self._place.spent + len(path) < self._budget.tokens:
            return None
        return self._due(self._at(tuple(path)))

    def _at(self, path: tuple[int, ...]) -> ReasoningPlace:
        """The place after `path`."""
        known = len(path)
        while path[:known] not in self._known:
            known -= 1
        for size in range(known, len(path)):
            self._known[path[: size + 1]] = self._after(self._known[path[:size]], path[size])
        return self._known[path]

    def _due(self, place: ReasoningPlace) -> int | None:
        """The token that is forced at `place`. A mark begins after a whole character, if that does not take too long."""
        over = place.spent - self._budget.tokens
        if not place.within or over < 0 or (not place.forced and over < MOST_WAITING and _cut(place.tail)):
            return None
        return self._closing[place.forced]

    def _after(self, place: ReasoningPlace, token: int) -> ReasoningPlace:
        """The place after `token`."""
        forced = place.forced + 1 if token == self._due(place) else 0
        text = place.tail + self._data(token)
        within = place.within
        while (found := text.find(self._marks[within])) >= 0:
            text = text[found + len(self._marks[within]) :]
            within = not within
        counts = place.within and within and not forced
        kept = text[max(len(text) - self._reach, 0) :]
        return ReasoningPlace(within, place.spent + counts, kept, forced if within else 0)


def begins(budget: ReasoningBudget, prompt: bytes) -> bool:
    """Whether a text after `prompt` is within a reasoning from its first token on: the last mark in it begins one."""
    return prompt.rfind(budget.opened.encode()) > prompt.rfind(budget.closed.encode())


def check_closing(budget: ReasoningBudget, closing: Sequence[bytes]) -> None:
    """Raise UsageError where tokens with the bytes `closing` do not write the mark that ends a reasoning."""
    if budget.closed.encode() not in b"".join(closing):
        raise UsageError(f"{budget.name} cannot be used: this model's tokenizer has no tokens for {budget.closed!r}.")


def _cut(text: bytes) -> bool:
    """Whether `text` ends within a character."""
    for size in range(1, min(4, len(text) + 1)):
        byte = text[-size]
        if byte >= 0xC0:
            return size < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        if byte < 0x80:
            return False
    return False
