"""EXSPEC: a pool of more requests than a pass verifies, from which rows that end in the same column are grouped.

As in "Batch Speculative Decoding Done Right" (arXiv 2510.22876), to measure against. A group is verified without
moving a row; where there is none, the oldest rows are realigned as in EQSPEC. What the paper's own code does worse is
left out: rows that are read already are never read again, a group may lack some rows of a full one, new prompts are
read together in passes of their own, and no row is passed over for ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from . import Selection

if TYPE_CHECKING:
    from ..request import Request

# Passes in a row from which the oldest request may be left out.
PATIENCE = 8


class ExSpec:
    """`batch` requests are verified together; all rows of the cache are the pool. batch=0: half of them.

    A smaller group is verified as it is where it has at least the share `partial` of what a realigned batch has."""

    def __init__(self, *, batch: int = 0, partial: float = 0.75):
        if batch < 0 or not 0 < partial <= 1:
            raise UsageError(f"exspec needs a batch of 0 or more and a partial above 0, at most 1; got {batch} and {partial:g}.")
        self.batch = batch
        self.partial = partial
        # Passes in a row that have left out the oldest request.
        self._left_out = 0

    def together(self, rows: int) -> int:
        return min(self.batch, rows) or max(rows // 2, 1)

    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        batch = self.together(len(running) + free)
        admitted = waiting[:free]
        pool = [*running, *admitted]
        ready = [request for request in pool if request.sequence.produced]
        unread = [request for request in pool if not request.sequence.produced]
        if unread and len(ready) < batch:
            return Selection(admitted, unread)
        return Selection(admitted, self._group(ready, batch))

    def _group(self, ready: Sequence[Request], batch: int) -> Sequence[Request]:
        """Requests that end in the same column; the oldest ones, where too few do."""
        groups: dict[int, list[Request]] = {}
        for request in ready:
            groups.setdefault(request.sequence.end, []).append(request)
        # The first of the fullest, so older requests go first.
        fullest = max(groups.values(), key=lambda group: min(len(group), batch), default=[])[:batch]
        few = len(fullest) < self.partial * min(batch, len(ready))
        chosen = ready[:batch] if few or self._left_out >= PATIENCE else fullest
        self._left_out = 0 if ready[:1] == chosen[:1] else self._left_out + 1
        return chosen
