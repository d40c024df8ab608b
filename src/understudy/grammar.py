"""A text on its way through a grammar: which tokens may follow it, and any path of a drafted tree after it.

One matcher walks the paths: it goes down token by token and rolls back, so each place costs what lies between it and the last one
that was asked for. What may follow depends on the path alone, whatever was drafted around it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# [vocabulary] bool.
Mask = NDArray[np.bool_]


class Matcher(Protocol):
    """What is used of llguidance's LLMatcher."""

    def try_consume_tokens(self, tokens: list[int]) -> int: ...

    def rollback(self, num_tokens: int) -> bool: ...

    def compute_bitmask(self) -> bytes: ...

    def is_accepting(self) -> bool: ...

    def get_error(self) -> str: ...


class GrammarState:
    """Where the text of one sequence stands in its grammar.

    `matcher` has read nothing yet, and is this state's own. `ends`: tokens that the model ends a text with, which may follow where
    the grammar is complete, and nowhere else. `stops`: those by which a caller wants the text to end besides; they may follow there
    too."""

    def __init__(self, matcher: Matcher, vocabulary: int, ends: Collection[int], stops: Collection[int] = ()):
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._stops = sorted(token for token in {*ends, *stops} if token < vocabulary)
        # No text goes on after one of them, though the matcher may read it as text.
        self._ends = frozenset(ends)
        # Tokens that the grammar knows as its own, and those that may follow where it is complete, in bits.
        self._own = ~self._packed(ends)
        self._last = self._packed(self._stops)
        # The tokens after the text that the matcher has read.
        self._path: list[int] = []
        # After how many of them the matcher computed a mask last.
        self._masked = 0
        # By path after the text: what may follow, in bits; None where the path itself breaks the grammar.
        self._known: dict[tuple[int, ...], NDArray[np.uint8] | None] = {}

    def allowed(self, path: Sequence[int]) -> Mask:
        """[vocabulary] which tokens may follow the text and `path` after it: none where `path` breaks the grammar."""
        found = self._bits(tuple(path))
        if found is None:
            return np.zeros(self._vocabulary, np.bool_)
        return np.unpackbits(found, count=self._vocabulary, bitorder="little").view(np.bool_)

    def take(self, token: int) -> bool:
        """Go on with `token`, which is `allowed`. Returns whether the text must end with it: nothing may follow any more."""
        read = self._go((token,))
        assert read, f"token {token} was chosen, and the grammar does not allow it"
        del self._path[0]
        self._masked -= 1
        self._known = {path[1:]: mask for path, mask in self._known.items() if path[:1] == (token,)}
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether the text is whole by its grammar, and can only end."""
        self._go(())
        if not self._matcher.is_accepting():
            return False
        after = self.allowed(())
        after[self._stops] = False
        return not after.any()

    @property
    def trouble(self) -> str:
        """Why the text cannot go on, in words; empty where it can."""
        allowed = self.allowed(()).any()
        self._go(())
        if error := self._matcher.get_error():
            return f"the grammar became too complex after the text so far ({error.splitlines()[0][:80]})"
        return "" if allowed else "no token of this model may follow the text so far"

    def _bits(self, path: tuple[int, ...]) -> NDArray[np.uint8] | None:
        if path not in self._known:
            self._known[path] = self._computed() if self._ends.isdisjoint(path) and self._go(path) else None
        return self._known[path]

    def _computed(self) -> NDArray[np.uint8]:
        """What may follow where the matcher stands, in bits."""
        self._masked = len(self._path)
        found = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: len(self._own)] & self._own
        return found | self._last if self._matcher.is_accepting() else found

    def _packed(self, tokens: Iterable[int]) -> NDArray[np.uint8]:
        """A bit for each token of the vocabulary: whether it is one of `tokens`."""
        found = np.zeros(self._vocabulary, np.bool_)
        found[[token for token in tokens if token < self._vocabulary]] = True
        return np.packbits(found, bitorder="little")

    def _go(self, path: tuple[int, ...]) -> bool:
        """Let the matcher stand after `path`. Returns whether it can; if not, it stands where the path leaves the grammar."""
        shared = 0
        while shared < min(len(path), len(self._path)) and path[shared] == self._path[shared]:
            shared += 1
        if len(self._path) > shared:
            self._matcher.rollback(len(self._path) - shared)
            del self._path[shared:]
        rest = list(path[shared:])
        if rest and self._masked > shared:
            # llguidance keeps its last mask by the number of its parser's row and the state of its lexer, and keeps it as that
            # row is rolled back. On another path a row of that number may allow other tokens. The mask of the place where the paths
            # part is right on both, and is kept instead.
            self._known[path[:shared]] = self._computed()
        read = self._matcher.try_consume_tokens(rest) if rest else 0
        self._path += rest[:read]
        return read == len(rest)
