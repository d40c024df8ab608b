"""States of a recurrent layer that are newer than the folded ones, so that few records are read again to come to the next token.

For layers whose state is stepped from token to token. A state is the same however one came to it, so what is kept here changes no
bit: it is the state after the last accepted token that was needed (a tip), the one at the end of the straight line that was read
last (an end), which becomes a tip where that line is accepted, and those that are to be folded (marks)."""

from __future__ import annotations

import torch
from torch import Tensor

from .tree import AcceptedPath

# marks of a row: a state is folded when a later one is there already
MARKS = 2
# states of a row whose memory is held to be written again
SPARE = 1
# states of a row at most: a tip, an end, marks, and those
NEWER = 2 + MARKS + SPARE
# tokens, and the state after them, which nobody writes as long as it is kept
Kept = tuple[int, Tensor]


class Tips:
    """Those of all rows of one layer."""

    def __init__(self, rows: int) -> None:
        self.lengths = [0] * rows
        self.tips: list[Kept | None] = [None] * rows
        self.ends: list[Kept | None] = [None] * rows
        self.marks: list[list[Kept]] = [[] for _ in range(rows)]
        # By row: memory of states that are kept, and of those that were and may be written again.
        self._made: list[list[Tensor]] = [[] for _ in range(rows)]

    def rooms(self, row: int, count: int, like: Tensor) -> list[Tensor]:
        """Memory for so many new states of `row`, each `like` this; that of states which are not kept any more comes first."""
        held, free = self._held(row)
        free = [*free[:count], *(torch.empty_like(like) for _ in range(count - len(free)))]
        if count:
            self._made[row] = [*held, *free]
        return free

    def settle(self, row: int) -> None:
        """What was asked for last is kept now, or not wanted: give back all memory but that of one state beside those."""
        held, free = self._held(row)
        self._made[row] = [*held, *free[:SPARE]]

    def _held(self, row: int) -> tuple[list[Tensor], list[Tensor]]:
        """The states of `row` that are kept, each once, and memory of others."""
        # by what it is: one state may be kept as several
        kept = (self.tips[row], self.ends[row], *self.marks[row])
        held = list({id(each[1]): each[1] for each in kept if each is not None}.values())
        return held, [made for made in self._made[row] if all(made is not each for each in held)]

    def mark(self, row: int, tokens: int, state: Tensor) -> None:
        """The state after so many `tokens` of the straight line, which is to be folded."""
        self.marks[row] = [*self.marks[row], (tokens, state)][-MARKS:]

    def marked(self, row: int, tokens: int) -> Tensor | None:
        """The state after so many tokens, where that is marked."""
        return next((state for count, state in self.marks[row] if count == tokens), None)

    def write(self, row: int, slot: int) -> None:
        """Records from `slot` on are about to be written."""
        end = self.ends[row]
        if end is not None and end[0] > slot:
            self.ends[row] = None
        self._forget(row, slot)

    def _forget(self, row: int, tokens: int) -> None:
        """Drop marks after more than so many tokens."""
        self.marks[row] = [kept for kept in self.marks[row] if kept[0] <= tokens]

    def keep(self, row: int, length: int, path: AcceptedPath) -> None:
        """The nodes of `path` above `length` were accepted."""
        end, straight = self.ends[row], length + path.straight
        if end is not None and end[0] <= straight:
            self.tips[row] = end
        self.ends[row] = None
        self._forget(row, straight)
        self.lengths[row] = length + len(path)

    def rewind(self, row: int, length: int) -> None:
        """The row has `length` tokens, no more than before."""
        tip = self.tips[row]
        if tip is not None and tip[0] > length:
            self.tips[row] = None
        self.ends[row] = None
        self._forget(row, length)
        self.lengths[row] = length

    def copy(self, row: int, to: int) -> None:
        """Row `to` has the tokens of `row`. It gets states of its own, since those of a row are written again."""
        tip, marks = self.tips[row], self.marks[row]
        self.tips[to], self.lengths[to] = None if tip is None else (tip[0], tip[1].clone()), self.lengths[row]
        self.ends[to], self.marks[to] = None, [(tokens, state.clone()) for tokens, state in marks]
