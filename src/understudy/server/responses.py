"""Answers that end when their client has left: in the queue, while a prompt is read, and while text comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ..api.errors import ApiError, error_body
from ..api.forms import ALIVE

Found = TypeVar("Found")
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# The event in the state of a request's scope that is set where its client sends no more, and has left perhaps: a sign of life shows
# it (see `connections`). Where another server runs the application there is none.
ENDED = "client_sends_no_more"


class EventStream(Response):
    """Server-sent events. Status and headers go out at once; the events end when the client leaves.

    A client that sends no more is sent a comment, which shows whether it has left.

    `ended` is called when nothing more will be sent, even if no event was asked for."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], headers: Mapping[str, str], ended: Callable[[], None]):
        self.events = events
        self.ended = ended
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = asyncio.Event()

        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            started.set()
            async with aclosing(self.events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
                    # Whether the client is still there is heard in the event loop's next turn.
                    await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b""})

        async def show_life() -> None:
            await started.wait()
            await _ended(scope).wait()
            await send({"type": "http.response.body", "body": ALIVE.encode(), "more_body": True})

        showing = asyncio.ensure_future(show_life())
        try:
            await until_gone(receive, write())
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            self.ended()


class PatientJson(Response):
    """The object that `answer` gives, as JSON; `answer` is given up when the client leaves. `ended` is called at the end.

    After each `silence` seconds without it a line break goes out, which readers of JSON skip, so that nobody between takes the
    connection for dead; the first one at once where the client sends no more, to see whether it has left. The first of them brings
    the status 200: an error after it can only be told in the object."""

    media_type = "application/json"

    def __init__(
        self,
        answer: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
        headers: Mapping[str, str],
        ended: Callable[[], None],
        silence: float,
        told: Callable[[ApiError], dict[str, Any]] = ApiError.body,
    ):
        self.answer = answer
        self.ended = ended
        self.silence = silence
        self.told = told
        super().__init__(headers=dict(headers))
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._write(send, _ended(scope)))
        finally:
            self.ended()

    async def _write(self, send: Send, ended: asyncio.Event) -> None:
        """Raises what `answer` raises, as long as nothing was sent."""
        start: Message = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        working, ending = asyncio.ensure_future(self.answer()), asyncio.ensure_future(ended.wait())
        awaited = {working, ending}
        begun = False
        try:
            while working not in (await asyncio.wait(awaited, timeout=self.silence, return_when=asyncio.FIRST_COMPLETED))[0]:
                if ending.done():
                    awaited.discard(ending)
                if not begun:
                    await send(start)
                    begun = True
                await send({"type": "http.response.body", "body": b"\n", "more_body": True})
            error = working.exception()
            if error is not None and not (begun and isinstance(error, ApiError)):
                raise error
            found = self.told(error) if isinstance(error, ApiError) else working.result()
            body = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
            if not begun:
                length = (b"content-length", str(len(body)).encode())
                await send({**start, "headers": [*self.raw_headers, length]})
            await send({"type": "http.response.body", "body": body})
        finally:
            working.cancel()
            ending.cancel()
            await asyncio.gather(working, ending, return_exceptions=True)


def _ended(scope: Scope) -> asyncio.Event:
    """Set once the client of the request sends no more."""
    found: asyncio.Event = scope.get("state", {}).get(ENDED) or asyncio.Event()
    return found


async def until_gone(receive: Receive, work: Awaitable[Found]) -> Found | None:
    """What `work` gives; None where the client left first: then it is given up. Raises what `work` raises."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    except OSError:
        # The socket broke while it was written to: the client has left.
        return None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def error_response(error: ApiError, path: str) -> Response:
    """The answer that tells `error` to a client of `path`."""
    return JSONResponse(error_body(error, path), error.status, headers=dict(error.headers))
