"""Answers that end when their client has left: in the queue, while a prompt is read, and while text comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..api.errors import ApiError

Found = TypeVar("Found")
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# The status that logs get of a request whose client has left: nobody reads it.
LEFT = 499


class EventStream(Response):
    """Server-sent events. Status and headers go out at once; the events end when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], headers: Mapping[str, str]):
        self.events = events
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self.events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        await until_gone(receive, write())


async def whole(request: Request, answer: Callable[[], Awaitable[dict[str, Any]]], headers: Mapping[str, str]) -> Response:
    """The object that `answer` gives, as JSON; `answer` is given up when the client leaves."""
    found = await until_gone(request.receive, answer())
    return Response(status_code=LEFT) if found is None else JSONResponse(found, headers=headers)


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


def error_response(error: ApiError) -> Response:
    """The answer that tells `error`."""
    return JSONResponse(error.body(), error.status, headers=dict(error.headers))
