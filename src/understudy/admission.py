"""Waiting requests get their cache rows: as the policy decides, and as far as memory that is free now holds all texts that run.

A row takes memory as its text grows, so texts that fit one by one may be too many together: those wait. Memory that rows have taken
stays theirs, and a later text uses it again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .engine import Engine
from .errors import Caught, RoomError
from .policies import Policy
from .request import Request
from .sequence import TokenSequence

log = logging.getLogger(__name__)


def nothing(sequences: Sequence[TokenSequence]) -> str:
    """What texts lack where memory is not looked at."""
    return ""


class Admission:
    """Admits requests to the `rows` cache rows of an engine.

    `lacking(sequences)` says in words what memory lacks for all of them, which have rows, to reach their ends; empty: nothing."""

    def __init__(
        self, engine: Engine, rows: int, policy: Policy, lacking: Callable[[Sequence[TokenSequence]], str] = nothing
    ):
        self.engine = engine
        self.rows = rows
        self.policy = policy
        self.lacking = lacking

    def select(self, running: list[Request], waiting: list[Request]) -> list[Request]:
        """The requests of the next pass, as the policy decides. Those it admits go from `waiting` to `running`, in order, up to the
        first that must wait for memory; one that would not even fit alone is ended by a RoomError."""
        free = sorted(set(range(self.rows)) - {request.sequence.row for request in running})
        selection = self.policy.select(tuple(running), tuple(waiting), len(free))
        assert len(selection.admit) <= len(free), f"{len(selection.admit)} requests admitted to {len(free)} free rows"
        run = selection.run
        for request in selection.admit:
            if not self._admitted(request, free, running, waiting):
                # The policy may have counted on those that wait.
                run = self.policy.select(tuple(running), (), len(free)).run
                break
        assert bool(run) or not running, "the policy lets nobody run"
        return [request for request in run if not request.finished]

    def _admitted(self, request: Request, free: list[int], running: list[Request], waiting: list[Request]) -> bool:
        """Move `request` from `waiting` to `running`, or end it. False: it waits on, since those that run need the memory."""
        lacks = ""
        with Caught() as bug:
            lacks = self._place(request.sequence, free, [other.sequence for other in running])
            if lacks and running:
                return False
            if not lacks:
                free.remove(request.sequence.row)
                request.meter.begin()
                self.engine.admit(request.sequence)
        waiting.remove(request)
        if bug.error is not None:
            log.error("a request was ended by a bug", exc_info=bug.error)
            self._withdraw(request, bug.error)
        elif lacks:
            self._withdraw(request, RoomError(lacks, code="out_of_memory"))
        else:
            running.append(request)
        return True

    def _place(self, sequence: TokenSequence, free: Sequence[int], others: Sequence[TokenSequence]) -> str:
        """Give `sequence` the best of the `free` rows in which memory holds it beside the `others`. Where none is, it gets no row,
        and what the best lacks is returned."""
        best = self.engine.row_for(sequence.tokens, free)
        lacks = ""
        for row in (best, *(row for row in free if row != best)):
            sequence.row = row
            here = self.lacking([*others, sequence])
            if not here:
                return ""
            lacks = lacks or here
        sequence.row = -1
        return lacks

    def _withdraw(self, request: Request, error: Exception) -> None:
        """End `request` because of `error`, and leave nothing of it."""
        sequence = request.sequence
        if any(sequence is admitted for admitted in self.engine.sequences):
            self.engine.release(sequence, "error")
        if sequence.row >= 0:
            self.engine.forget(sequence.row)
        sequence.finish_reason = "error"
        request.end(error)
