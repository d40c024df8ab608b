"""One thread runs the passes of a model; tasks of event loops hand requests in and await what each pass gave them.

The server, `understudy batch` and `AsyncLLM` are its users."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from .errors import Caught, UnderstudyError, UsageError
from .request import Request, Step

# Seconds between two looks at whether the thread should end, where there is nothing to do.
IDLE = 0.5
log = logging.getLogger("understudy.service")


class Unavailable(UnderstudyError):
    """No request can be taken now (503). `retry_after`: seconds until another try may help; 0: none will."""

    def __init__(self, message: str, retry_after: int = 0):
        super().__init__(message)
        self.retry_after = retry_after


class Service:
    """Runs the passes of `llm` from `start` to `close`.

    At most `max_queue` requests wait for a place beside those that run; None: any number.
    `ended` is told of each request that ends, in the thread that ended it."""

    def __init__(self, llm: Any, max_queue: int | None = None, ended: Callable[[Request], None] = lambda request: None):
        self.llm = llm
        self.max_queue = max_queue
        self.ended = ended
        # Why nothing can run any more; empty while all is well.
        self.fault = ""
        self.draining = False
        # The requests that came this way; others may use the scheduler too.
        self._own: weakref.WeakSet[Request] = weakref.WeakSet()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="understudy-passes", daemon=True)

    def start(self) -> None:
        # A thread in the middle of a pass when the interpreter ends would bring the process down.
        atexit.register(self.close)
        self._thread.start()

    def close(self) -> None:
        """End the thread after the pass under way. What still runs is cancelled."""
        self.drain()
        self._closing.set()
        self.llm.scheduler.wake()
        if self._thread.is_alive():
            self._thread.join()
        atexit.unregister(self.close)
        self._end_all()

    def drain(self) -> None:
        """Take no more requests; those that were taken go on."""
        self.draining = True

    @property
    def trouble(self) -> str:
        """Why no request would be served, in words; empty: it would."""
        if self.fault:
            return self.fault
        if self._closing.is_set():
            return "it was closed"
        if not self._thread.is_alive():
            return "the thread that runs passes has ended"
        return "it is shutting down" if self.draining else ""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue `requests`, all or none. Raises Unavailable, and UsageError for more than could ever wait together."""
        if self.trouble:
            raise Unavailable(f"No request is taken: {self.trouble}.", retry_after=0 if self.fault else 5)
        most = None if self.max_queue is None else self.max_queue + self.llm.scheduler.rows
        if most is not None and len(requests) > most:
            raise UsageError(f"One request asks for {len(requests)} texts, and {most} may run and wait here: divide it.")
        # Those whose clients have left are gone by the next pass: a client that tries again does not queue behind itself.
        waiting = sum(not request.cancelled for request in tuple(self.llm.scheduler.waiting))
        running = sum(not request.cancelled for request in tuple(self.llm.scheduler.running))
        free = max(self.llm.scheduler.rows - running, 0)
        if self.max_queue is not None and waiting + len(requests) > self.max_queue + free:
            raise Unavailable(f"{waiting} requests wait already, {self.max_queue} may: try again later.", retry_after=10)
        for request in requests:
            self._own.add(request)
            self.llm.scheduler.submit(request)
        # Closed meanwhile: nobody looks for new requests any more.
        if self._closing.is_set() or self.fault:
            self._end_all()

    def cancel(self, request: Request) -> None:
        """Give the place of `request` back by the next pass."""
        if not request.finished:
            self.llm.scheduler.cancel(request)

    def _run(self) -> None:
        """Passes as long as there is work. An error of a pass ends the requests it served, and the next pass goes on."""
        scheduler = self.llm.scheduler
        try:
            while not self._closing.is_set():
                if not scheduler.wait_for_work(IDLE):
                    continue
                # A bug must not end the thread, or every client would wait for ever.
                with Caught() as bug:
                    scheduler.step()
                if isinstance(bug.error, UnderstudyError):
                    log.error("%s", bug.error)
                    self.fault = str(bug.error) if self.llm.model.lost else ""
                elif bug.error is not None:
                    log.error("a pass failed", exc_info=bug.error)
                if self.fault:
                    break
        finally:
            if not self._closing.is_set():
                self.fault = self.fault or "the thread that runs passes has ended"
            self._end_all()

    def abandon(self, why: str) -> None:
        """End its requests with the error `why`: those who wait for one hear of it now, its place is free by the next pass."""
        scheduler = self.llm.scheduler
        for request in [request for request in (*scheduler.running, *scheduler.waiting) if request in self._own]:
            if request.error is None:
                request.error = Unavailable(f"The request was ended: {why}.")
            scheduler.cancel(request)
            request.heard()

    def _end_all(self) -> None:
        """Nobody waits for passes that will not come."""
        self.abandon(self.fault or "it was closed")


class Call:
    """Requests that one task follows together. Made in the event loop that awaits them, and submitted later.

    `limit`: seconds after which they are given up; 0: never."""

    def __init__(self, service: Service, requests: Sequence[Request], limit: float = 0.0):
        self.service = service
        self.requests = requests
        self.deadline = time.perf_counter() + limit if limit else None
        # What ended one of the requests before its time; the steps end with it.
        self.error: BaseException | None = None
        self._ended: set[int] = set()
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        for index, request in enumerate(requests):
            request.heard = partial(self._tell, index)

    def _tell(self, index: int) -> None:
        """News of request number `index`; called in the thread that runs passes."""
        # Counted before the client can know, so that figures never lag behind answers.
        if self.requests[index].finished and index not in self._ended:
            self._ended.add(index)
            self.service.ended(self.requests[index])
        # The loop may be gone when the last requests are cancelled.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    async def steps(self, silence: float) -> AsyncGenerator[tuple[int, Step] | None]:
        """Each step with the number of its request, and None after each `silence` seconds without one.

        Leaving early gives the places of all requests back. They end early where one request does (see `error`). Raises
        TimeoutError at the deadline."""
        try:
            while True:
                # Looked at first: what a request has when it is finished is all there will be.
                finished = [request.finished for request in self.requests]
                self._news.clear()
                for index, request in enumerate(self.requests):
                    while request.steps:
                        yield index, request.steps.popleft()
                ended = zip(self.requests, finished, strict=True)
                self.error = next((r.error for r, done in ended if (done or r.cancelled) and r.error is not None), None)
                if self.error is not None or all(finished):
                    return
                if not await self._wait(silence):
                    yield None
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give the places of all requests back by the next pass; those that have ended have none."""
        for request in self.requests:
            self.service.cancel(request)

    async def _wait(self, seconds: float) -> bool:
        """Whether there is news within `seconds`. Raises TimeoutError at the deadline."""
        left = seconds if self.deadline is None else min(seconds, self.deadline - time.perf_counter())
        try:
            async with asyncio.timeout(max(left, 0.0)):
                await self._news.wait()
        except TimeoutError:
            if self.deadline is not None and time.perf_counter() >= self.deadline:
                raise
            return False
        return True
