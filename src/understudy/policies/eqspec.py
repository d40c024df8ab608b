"""EQSPEC: a batch is verified as one left-padded rectangle, and its rows are realigned after each verification.

As in "Batch Speculative Decoding Done Right" (arXiv 2510.22876), to measure against: its batch is static, so the rows
of requests that have finished stay empty until the last one has. What the paper's own code does more slowly is left
out: finished rows are not verified any more, a row near its end does not shorten the drafts of others, a full accept
keeps its bonus token, and a row that need not move is not copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import Selection

if TYPE_CHECKING:
    from ..request import Request


class EqSpec:
    """As many requests as there are rows begin together, read their prompts together, and go on until all have finished."""

    def together(self, rows: int) -> int:
        return rows

    def select(self, running: Sequence[Request], waiting: Sequence[Request], free: int) -> Selection:
        admitted = () if running else waiting[:free]
        batch = [*running, *admitted]
        unread = [request for request in batch if not request.sequence.produced]
        return Selection(admitted, unread or batch)
