"""Answers whose model may have to be loaded first: whoever waits for one is told that the server is alive."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

from ..api.answers import ApiAnswer, too_slow
from ..api.asking import AskedBody
from ..api.errors import ApiError, answer_to
from ..errors import UnderstudyError
from ..service import Unavailable
from .models import ServedModels
from .places import Lease

log = logging.getLogger("understudy.server")


class PendingAnswer:
    """The answer to one body. It begins at once where its model is loaded, and later where that must be loaded first.

    Must be made in an event loop; `end` gives back all that it holds."""

    def __init__(self, models: ServedModels, asked: AskedBody):
        self.models = models
        self.asked = asked
        self.silence = models.settings.keep_alive
        self.at_once = models.place(asked.body.model).open
        self._task = asyncio.ensure_future(self._begin())

    async def begun(self) -> None:
        """Wait until the answer has begun; where its model is loaded meanwhile, for a while at most.

        Raises what keeps it from beginning."""
        done, _ = await asyncio.wait((self._task,), timeout=None if self.at_once else self.silence)
        if done:
            self._task.result()

    async def whole(self) -> dict[str, Any]:
        """All of it as one object. Raises ApiError and UnderstudyError."""
        try:
            answer, _ = await asyncio.shield(self._task)
        except UnderstudyError as error:
            raise answer_to(error) from None
        return await answer.whole()

    async def events(self) -> AsyncGenerator[str]:
        """The stream. What ends a request ends it with an event that holds the error."""
        beginning = self.asked.beginning
        if not self._task.done():
            for event in beginning.opening():
                yield event
        while not (await asyncio.wait((self._task,), timeout=self.silence))[0]:
            yield beginning.alive()
        error = self._task.exception()
        if error is not None:
            if not isinstance(error, ApiError | UnderstudyError):
                log.error("an answer could not begin", exc_info=error)
            yield beginning.failure(answer_to(error))
            return
        answer, _ = self._task.result()
        async with aclosing(answer.events()) as events:
            async for event in events:
                yield event

    def end(self) -> None:
        """Nothing more of it is wanted: its requests are given up, and its model is given back."""
        self._task.cancel()
        self._task.add_done_callback(_give_back)

    async def _begin(self) -> tuple[ApiAnswer, Lease]:
        """Make the requests and submit them, once the model is loaded."""
        since = time.perf_counter()
        settings = self.models.settings
        try:
            async with asyncio.timeout(settings.request_timeout or None):
                lease = await self._lease()
        except TimeoutError:
            raise too_slow(settings) from None
        with ExitStack() as held:
            held.callback(lease.release)
            served = lease.served
            # A long text takes a while: other answers go on meanwhile.
            requests, form = await asyncio.to_thread(self.asked.make, served.llm, served.settings)
            try:
                tell = partial(self.models.metrics.answered, served.settings.model_name)
                answer = ApiAnswer(served.service, served.settings, self.asked.body, requests, form, since, tell)
            except Unavailable:
                self._rejected(served.service.trouble)
                raise
            held.pop_all()
        return answer, lease

    async def _lease(self) -> Lease:
        try:
            return await self.models.lease(self.asked.body.model)
        except Unavailable:
            self._rejected(self.models.trouble)
            raise

    def _rejected(self, trouble: str) -> None:
        """Count a request that is turned away: by `trouble`, or by a queue that is full."""
        name = self.models.place(self.asked.body.model).name
        self.models.metrics.rejected(name, "unavailable" if trouble else "queue_full")


def _give_back(task: asyncio.Task[tuple[ApiAnswer, Lease]]) -> None:
    """Give back what an answer that had begun holds."""
    if not task.cancelled() and task.exception() is None:
        answer, lease = task.result()
        answer.call.cancel()
        lease.release()
