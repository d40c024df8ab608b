"""What stands before the application: pure ASGI, so that it never hides that a client has left."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..api.errors import ApiError
from .page import PAGE
from .responses import error_response
from .settings import Settings

# Paths that need no key: what load balancers and monitors ask.
OPEN = ("/health", "/version")
# A body that is too large is read, and thrown away, up to so many times the limit.
READ_ON = 4


class Guards:
    """Checks the Host, the key and the kind of a request, and how large its body is and how long it takes to arrive."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
            send = _without_body(send)
        headers = Headers(scope=scope)
        body = _Body(receive, self.settings)
        try:
            self._check(scope["method"], scope["path"], headers)
            if scope["method"] == "POST":
                await body.read(int(headers.get("content-length") or 0), headers.get("expect", "").lower() == "100-continue")
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        except ClientLeft:
            return
        await self.app(scope, body, send)

    def _check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if self.settings.hosts and _name(host) not in self.settings.hosts:
            raise ApiError(403, f"The host {host!r} is not one of this server's names (--allowed-host adds one).")
        if path not in OPEN and not (self.settings.page and path in PAGE) and method != "OPTIONS" and not self._has_key(headers):
            raise ApiError(401, "A valid key is needed: Authorization: Bearer KEY.", code="invalid_api_key")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            raise ApiError(415, f"The content type must be application/json, got {kind or 'none'}.")
        packed = headers.get("content-encoding", "").strip().lower()
        if method == "POST" and packed not in ("", "identity"):
            raise ApiError(415, f"The body must be sent as it is, without Content-Encoding: {packed[:40]}.")

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        if not self.settings.api_keys:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", "")] + ([bearer.strip()] if scheme.lower() == "bearer" else [])
        # Headers are bytes, which arrive here as latin-1. All are compared, and each in constant time, so that time tells nothing.
        pairs = [(key.encode("latin-1"), own.encode()) for key in given for own in self.settings.api_keys]
        return sum(hmac.compare_digest(*pair) for pair in pairs) > 0


def _without_body(send: Send) -> Send:
    """A `send` for answers to HEAD: the status and headers of GET, and no body."""

    async def short(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return short


class ClientLeft(Exception):
    """The client left before its request was there."""


class _Body:
    """A `receive` that gives the whole body at once, read within the limits, and then what comes after it."""

    def __init__(self, receive: Receive, settings: Settings):
        self.receive = receive
        self.settings = settings
        self.content: bytes | None = None

    async def read(self, told: int, asks: bool) -> None:
        """Raises ApiError for a body that is too large or too slow, ClientLeft where the client does not wait for its end.

        told: bytes that the client says the body has; asks: does it wait for leave to send them?"""
        limit = self.settings.body_limit
        if told > limit and (asks or told > READ_ON * limit):
            raise _too_large(limit)
        found = bytearray()
        received = 0
        try:
            async with asyncio.timeout(self.settings.receive_timeout):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    piece = message.get("body", b"")
                    received += len(piece)
                    if received <= limit:
                        found += piece
                    more = message.get("more_body", False)
                    # A client that is still sending would not read the answer: what is a little too large is read to its end.
                    if received > limit and (not more or received > READ_ON * limit):
                        raise _too_large(limit)
                    if not more:
                        break
        except TimeoutError:
            if received > limit:
                raise _too_large(limit) from None
            seconds = self.settings.receive_timeout
            raise ApiError(408, f"The body did not arrive within {seconds:g} s.", headers={"Connection": "close"}) from None
        self.content = bytes(found)

    async def __call__(self) -> Message:
        if self.content is None:
            return await self.receive()
        content, self.content = self.content, None
        return {"type": "http.request", "body": content, "more_body": False}


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes.", headers={"Connection": "close"})


def _name(host: str) -> str:
    """A Host header without its port."""
    host = host.lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
