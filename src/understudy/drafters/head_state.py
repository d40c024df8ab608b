"""What a trained head knows of each row's text: tokens that it has read, and hidden states of the target for those to come.

Invariant: what a head has read of a text are the target's own hidden states, token by token, so that it does not depend on how the
text was cut into passes, on what was drafted in between, or on the row in which it was read first.

The cache's length is that of the layer that is furthest behind (`DraftHead.lag`). Reading goes on from there, so its first tokens
are given once more to the layers that have them already.

Hidden states are large, so only those are kept whose tokens are yet to be read, and a few before them. A text that goes on from an
earlier place has the target read one token again (`reach`), whose hidden states are the ones that lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..sequence import TokenSequence
from ..tree import Nodes, TokenTree
from . import OwnCache, Verified
from .head_runner import HeadRunner

# Tokens of a row that are read at once, while its prompt is.
PIECE = 64
# Hidden states that are kept though the tokens after them were read: equal prompts that come together begin before the last token.
KEPT = 2


@dataclass(frozen=True)
class Known:
    """The target's hidden states at some tokens of a text."""

    # The number of the first of these tokens.
    first: int
    # All of them, and their hidden states [m, taps, hidden size].
    tokens: list[int]
    hidden: Tensor

    @property
    def end(self) -> int:
        """One past the number of the last of them."""
        return self.first + len(self.tokens)

    def part(self, first: int, end: int) -> Known:
        """Those of tokens `first` to `end`."""
        low, high = max(first - self.first, 0), max(end - self.first, 0)
        return Known(self.first + low, self.tokens[low:high], self.hidden[low:high])

    def joined(self, later: Known) -> Known:
        """These up to where `later` ones begin, and those."""
        before = self.part(self.first, later.first)
        return Known(self.first, before.tokens + later.tokens, torch.cat([before.hidden, later.hidden]))


@dataclass(frozen=True)
class Unread:
    """Tokens of a row, and the target's hidden states at the token before each [n, taps, hidden size]."""

    row: int
    # The number of the first of these tokens.
    first: int
    tokens: list[int]
    hidden: Tensor


class HeadState:
    """Reads accepted text with `runner`. Its cache then holds tokens 1 to `runner.cache.lengths[row]` of the text of each row, and
    the `lag` of further layers beyond."""

    def __init__(self, runner: HeadRunner):
        self.runner = runner
        self.cache = runner.cache
        self.lag = runner.head.lag
        # By cache row.
        self.known: dict[int, Known] = {}

    def observe(self, verified: Verified) -> None:
        """Learn the target's hidden states at accepted nodes, before its cache keeps these. Long chunks of prompts are read now."""
        assert verified.hidden is not None, "the target handed out no hidden states"
        first = self.runner.target.cache.lengths[verified.sequence.row]
        hidden = verified.hidden[verified.path.to(verified.hidden.device)] if verified.drafted else verified.hidden
        tokens = verified.tree.tokens[verified.path].tolist()
        for start in range(0, len(tokens), PIECE):
            new = Known(first + start, tokens[start : start + PIECE], hidden[start : start + PIECE])
            self._learn(verified.sequence.row, new)

    def _learn(self, row: int, new: Known) -> None:
        known, read = self.known.get(row), self.cache.lengths[row]
        if known is not None and known.first <= new.first <= known.end:
            self.known[row] = known.joined(new)
        else:
            assert new.first <= read, f"row {row}: the head has read {read} tokens, and is told of number {new.first} on"
            # A copy: what is given lies in the hidden states of the whole pass.
            self.known[row] = Known(new.first, new.tokens, new.hidden.clone())
        unread = self._unread(row, [])
        if len(unread.tokens) - self.lag >= PIECE:
            self._read([unread])

    def _unread(self, row: int, last: list[int]) -> Unread:
        """The tokens of `row` that can be read, with those in `last` after the known ones."""
        known, first = self.known[row], self.cache.lengths[row] + 1
        tokens = (known.tokens + last)[first - known.first :]
        hidden = known.hidden[first - 1 - known.first :][: len(tokens)]
        return Unread(row, first, tokens, hidden)

    def read(self, sequences: Sequence[TokenSequence]) -> dict[int, Tensor]:
        """Read what was accepted of `sequences`, up to their last tokens, in one call of the head.

        Returns the states [state size] of the last tokens by row, but of those that were read before."""
        unread = []
        for sequence in sequences:
            row, last = sequence.row, len(sequence.tokens) - 1
            if self.cache.lengths[row] < last:
                assert self.known[row].end == last, f"row {row}: the hidden states at token {last - 1} are not known"
                unread.append(self._unread(row, sequence.tokens[-1:]))
        return self._read(unread) if unread else {}

    def _read(self, unread: Sequence[Unread]) -> dict[int, Tensor]:
        """Read all of them, at least one token each; the states of the last ones by row."""
        counts = [len(part.tokens) for part in unread]
        if not self.cache.shapes:
            # Nothing is kept of earlier tokens.
            unread = [Unread(p.row, p.first + len(p.tokens) - 1, p.tokens[-1:], p.hidden[-1:]) for p in unread]
        nodes = [Nodes.of(TokenTree.chain(part.tokens), part.row, part.first) for part in unread]
        made = self.runner.begin(Nodes.join(nodes), torch.cat([part.hidden for part in unread]))
        states: dict[int, Tensor] = {}
        for part, count, own in zip(unread, counts, torch.split(made, [len(part.tokens) for part in unread]), strict=True):
            states[part.row] = own[-1]
            if count > self.lag:
                self.cache.keep(part.row, torch.arange(count - self.lag))
            known = self.known[part.row]
            self.known[part.row] = known.part(known.end - KEPT - self.lag, known.end)
        return states

    @cached_property
    def own_cache(self) -> OwnCache:
        """The head's keys and values of tokens. With those of a prefix back in it, the target reads the tokens after them again."""
        return OwnCache(self.cache, 1 + self.lag, self.runner.identity())

    def last_read(self, sequence: TokenSequence) -> tuple[list[int], Tensor]:
        """The last `lag` tokens of `sequence`, which was read, and the hidden states at the token before each; fewer of a text that
        is too short."""
        known = self.known[sequence.row]
        first = max(len(sequence.tokens) - self.lag, 1)
        return [*known.tokens, sequence.tokens[-1]][first - known.first :], known.hidden[first - 1 - known.first :]

    def _held(self, row: int, length: int) -> int:
        """Of how many of the first `length` tokens in `row` all layers have keys and values, where no more than those are known."""
        return min(self.cache.lengths[row], max(length - 1 - self.lag, 0))

    def rewind(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of the text in `row`."""
        self.cache.rewind(row, self._held(row, length))
        if row in self.known:
            self._set(row, self.known[row].part(0, length))

    def copy(self, row: int, to: int, length: int) -> None:
        """Know of the text in row `to` what is known of the first `length` tokens in `row`."""
        self.rewind(to, 0)
        self.cache.copy(row, to, self._held(row, length))
        if row in self.known:
            self._set(to, self.known[row].part(0, length))

    def _set(self, row: int, known: Known) -> None:
        self.known.pop(row, None)
        if known.tokens:
            self.known[row] = known

    def reach(self, row: int, length: int) -> int:
        """As `Drafter.reach`: `length` where the hidden states at the token before are known."""
        held, known = self.cache.reach(row, self._held(row, length)), self.known.get(row)
        if known is not None and known.first <= held <= known.end:
            return min(length, known.end)
        return held
