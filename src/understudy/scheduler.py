"""The scheduler: requests come in from any thread, every pass serves those that a policy selects, and results go out.

Passes run one at a time, in the thread of whoever waits for a result. A request that nobody waits for goes on with the others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice

from .admission import Admission, nothing
from .advance import Advance
from .engine import Engine
from .errors import Caught, GrammarError, NumbersError, RequestError, RoomError, UnderstudyError
from .policies import Policy
from .request import Request, Step
from .sequence import TokenSequence
from .stats import Counters, Share

log = logging.getLogger(__name__)


def no_numbers(tokens: Sequence[int], row: int) -> UnderstudyError:
    """What is known without looking into the model."""
    return NumbersError(f"The logits after token {len(tokens)} of a text are no numbers (NaN or infinity).")


def _any_finished(requests: Sequence[Request]) -> bool:
    return any(request.finished for request in requests)


class Scheduler:
    """Waiting and running requests of one engine, which has `rows` cache rows.

    `counters()` tells what has been used so far. Each pass runs inside `guard()`, which mends the model after an error.
    `explain(tokens, row)` says why the logits after `tokens` are no numbers; it may use cache row `row`. `lacking` is that of
    `Admission`."""

    def __init__(
        self,
        engine: Engine,
        rows: int,
        policy: Policy,
        counters: Callable[[], Counters],
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
        explain: Callable[[Sequence[int], int], UnderstudyError] = no_numbers,
        lacking: Callable[[Sequence[TokenSequence]], str] = nothing,
    ):
        self.engine = engine
        self.rows = rows
        self.admission = Admission(engine, rows, policy, lacking)
        self.counters = counters
        self.guard = guard
        self.explain = explain
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        # Guards the two lists and `_stepping`; told whenever a pass is over.
        self._changed = threading.Condition()
        self._stepping = False
        # The thread that set it last.
        self._thread = 0
        # Why no pass is run any more; None while passes are.
        self._shut: UnderstudyError | None = None

    @property
    def idle(self) -> bool:
        """Is there nothing to do?"""
        return not self.waiting and not self.running

    def submit(self, request: Request) -> None:
        """Queue `request`, or end it where no pass is run any more. Does not block, and may be called from any thread."""
        with self._changed:
            if self._shut is None:
                self.waiting.append(request)
            else:
                request.end(self._shut)
            self._changed.notify_all()

    def wait_for_work(self, seconds: float) -> bool:
        """Whether there is something to do, now or within `seconds`, or until `wake` is called."""
        with self._changed:
            if self.idle:
                self._changed.wait(seconds)
            return not self.idle

    def wake(self) -> None:
        """End a `wait_for_work` that has nothing to wait for."""
        with self._changed:
            self._changed.notify_all()

    def cancel(self, request: Request) -> None:
        """End `request` now, or at the end of the pass that is under way. No other request is touched. Does not block."""
        with self._changed:
            request.cancelled = True
            self._drop_cancelled(running=not self._stepping)

    def shut(self, why: UnderstudyError) -> None:
        """Run no pass after the one under way, which is waited for, and end all requests with `why`, those that come later too.

        What passes use may be given back then: no thread is in one. Only where the handler of a signal shuts it in the middle of a
        pass of its own thread, that pass is not waited for."""
        with self._changed:
            self._shut = self._shut or why
            if self._thread != threading.get_ident():
                self._changed.wait_for(lambda: not self._stepping)
            for request in (*self.waiting, *self.running):
                request.error = request.error or why
                request.cancelled = True
            self._drop_cancelled(running=not self._stepping)
            self._changed.notify_all()

    def step(self) -> None:
        """Run one pass, wait first for the pass of another thread. What it gives is in the requests.

        An error that concerns all requests of the pass ends them, and is raised. A bug in what is done for one of several ends
        that one: it is logged and kept in the request. An interrupt ends none."""
        with self._changed:
            self._changed.wait_for(lambda: not self._stepping)
            if self._shut is not None:
                return
            self._thread = threading.get_ident()
            self._stepping = True
        self._step()

    def follow(self, request: Request) -> Generator[Step, None, None]:
        """The steps of `request` as they come, to its end; runs passes as long as nobody else does. Raises what ended it.

        Leaving the iterator early cancels the request."""
        try:
            while True:
                # Looked at first: what a request has when it is finished is all there will be.
                finished = request.finished
                while request.steps:
                    yield request.steps.popleft()
                if finished and request.error is not None:
                    raise request.error
                if finished:
                    return
                self._wait_or_step(lambda: bool(request.steps) or request.finished)
        finally:
            if not request.finished:
                self.cancel(request)

    def complete(
        self,
        requests: Iterable[Request],
        window: int | None = None,
        ended: Callable[[Request], None] = lambda request: None,
    ) -> None:
        """Submit `requests`, and return when all are finished; `ended` is told of each. An error or an interrupt cancels the rest.

        At most `window` of them are submitted and unfinished at a time (None: all), and each is made when its turn comes. A
        RequestError or a RoomError concerns one request: it is raised when the others are finished."""
        coming = iter(requests)
        going: list[Request] = []
        failed: BaseException | None = None
        try:
            while going := self._topped_up(going, coming, window):
                self._wait_or_step(partial(_any_finished, going))
                for request in [request for request in going if request.finished]:
                    going.remove(request)
                    if request.error is None:
                        ended(request)
                    elif not isinstance(request.error, RequestError | RoomError):
                        raise request.error
                    failed = failed or request.error
        finally:
            for request in going:
                if not request.finished:
                    self.cancel(request)
        if failed is not None:
            raise failed

    def _topped_up(self, going: list[Request], coming: Iterator[Request], window: int | None) -> list[Request]:
        """`going` with the next of `coming`, `window` in all: those are submitted."""
        for request in islice(coming, None if window is None else window - len(going)):
            going.append(request)
            self.submit(request)
        return going

    def _wait_or_step(self, news: Callable[[], bool]) -> None:
        """Wait for news, or run a pass if no thread does."""
        with self._changed:
            # Once it is shut, news comes from whoever did that.
            self._changed.wait_for(lambda: news() or not (self._stepping or self._shut))
            if news():
                return
            self._thread = threading.get_ident()
            self._stepping = True
        self._step()

    def _step(self) -> None:
        """One pass by this thread, which has set `_stepping`."""
        try:
            with self._changed:
                self._drop_cancelled()
                running = self.admission.select(self.running, self.waiting)
            if running:
                self._run(running)
        finally:
            with self._changed:
                self._drop_cancelled()
                self.running = [request for request in self.running if not request.finished]
                self._stepping = False
                self._changed.notify_all()

    def _run(self, running: list[Request]) -> None:
        before = self.counters()
        with Caught() as bug, self.guard():
            advances = self.engine.step([request.sequence for request in running])
        if bug.error is not None:
            if len(running) > 1 and not isinstance(bug.error, UnderstudyError):
                log.error("a pass failed by a bug: each request goes on with one of its own", exc_info=bug.error)
                self._run_each(running)
                return
            for request in running:
                self._end(request, bug.error)
            raise bug.error
        shares = Share.split(self.counters().since(before), advances)
        owners = {request.sequence: request for request in running}
        broken = [
            (owners[advance.sequence], fault)
            for advance, share in zip(advances, shares, strict=True)
            if (fault := self._recorded(owners[advance.sequence], advance, share)) is not None
        ]
        # Last, so that each of the others has what the pass gave it.
        for request, fault in broken:
            self._blame(request, fault)

    def _run_each(self, running: list[Request]) -> None:
        """A pass for each of `running` alone, since the one for all of them failed by a bug. Those alone whose own pass fails end.

        The failed pass has left every text as it was."""
        for request in running:
            with Caught() as bug:
                self._run([request])
            if bug.error is not None:
                log.error("a request was ended by a bug", exc_info=bug.error)

    def _recorded(self, request: Request, advance: Advance, share: Share) -> Exception | None:
        """Count what a pass gave `request`. Returns the bug that ended it, if there was one."""
        if advance.fault is not None:
            return advance.fault
        if advance.sequence.finish_reason == "error":
            request.error = self._explained(advance.sequence)
        with Caught() as bug:
            request.record(advance, share)
        if bug.error is not None and any(advance.sequence is other for other in self.engine.sequences):
            self.engine.release(advance.sequence, "error")
        return bug.error

    def _blame(self, request: Request, error: Exception) -> None:
        """End `request` because of a bug in what was done for it alone."""
        log.error("a request was ended by a bug", exc_info=error)
        request.end(error)

    def _explained(self, sequence: TokenSequence) -> UnderstudyError:
        """Why no token was chosen after those of `sequence`, which was released: its grammar allows none, or the logits are no
        numbers. Then its cache row is empty afterwards."""
        if sequence.grammar is not None and (why := sequence.grammar.trouble):
            return GrammarError(f"The text cannot go on: {why}.")
        try:
            with self.guard():
                return self.explain(sequence.tokens, sequence.row)
        except UnderstudyError as error:
            return error
        finally:
            self.engine.forget(sequence.row)

    def _end(self, request: Request, error: Exception) -> None:
        self.engine.release(request.sequence, "error")
        request.end(error)

    def _drop_cancelled(self, running: bool = True) -> None:
        """Take cancelled requests out of the queue and, with `running`, out of those that run: then no pass may be under way.

        `_changed` is held."""
        for request in [request for request in self.waiting if request.cancelled]:
            self.waiting.remove(request)
            request.sequence.finish_reason = "cancelled"
            request.end(request.error)
        for request in [request for request in self.running if request.cancelled] if running else ():
            self.running.remove(request)
            if not request.finished:
                self.engine.release(request.sequence)
            request.end(request.error)
