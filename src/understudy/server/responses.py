"""Answers that end when their client has left: in the queue, while a prompt is read, and while text comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError

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

        await until_gone(receive, write)


async def whole(request: Request, answer: Callable[[], Awaitable[dict[str, Any]]], headers: Mapping[str, str]) -> Response:
    """The object that `answer` gives, as JSON; `answer` is given up when the client leaves."""
    found: list[dict[str, Any]] = []

    async def work() -> None:
        found.append(await answer())

    await until_gone(request.receive, work)
    return JSONResponse(found[0], headers=headers) if found else Response(status_code=LEFT)


async def until_gone(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, but give it up when the client has left. Raises what `work` raises."""
    failed: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            await work()
        except OSError:
            # The socket broke while it was written to: the client has left.
            pass
        except Exception as error:  # noqa: BLE001  raised below as it is, not in a group of errors
            failed.append(error)
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]


def error_response(error: ApiError) -> Response:
    """The answer that tells `error`."""
    return JSONResponse(error.body(), error.status, headers=dict(error.headers))
