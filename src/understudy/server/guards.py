"""What stands before the application: pure ASGI, so that it never hides that a client has left."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..api.errors import ApiError
from .responses import error_response
from .settings import Settings

# Paths that need no key: what load balancers and monitors ask.
OPEN = ("/health", "/version")


class Guards:
    """Checks the Host, the key and the kind of a request, and how large its body is and how long it takes to arrive."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
            body = _Body(receive, self.settings)
            if scope["method"] == "POST":
                await body.read()
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        except ClientLeft:
            return
        await self.app(scope, body, send)

    def _check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if self.settings.hosts and _name(host) not in self.settings.hosts:
            raise ApiError(403, f"The host {host!r} is not one of this server's names (--allowed-host adds one).")
        if path not in OPEN and method != "OPTIONS" and not self._has_key(headers):
            raise ApiError(401, "A valid key is needed: Authorization: Bearer KEY.", code="invalid_api_key")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            raise ApiError(415, f"The content type must be application/json, got {kind or 'none'}.")
        if int(headers.get("content-length") or 0) > self.settings.body_limit:
            raise _too_large(self.settings.body_limit)

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        if not self.settings.api_keys:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", "")] + ([bearer.strip()] if scheme.lower() == "bearer" else [])
        # All are compared, and each in constant time, so that time tells nothing of a key.
        return sum(hmac.compare_digest(key.encode(), own.encode()) for key in given for own in self.settings.api_keys) > 0


class ClientLeft(Exception):
    """The client left before its request was there."""


class _Body:
    """A `receive` that gives the whole body at once, read within the limits, and then what comes after it."""

    def __init__(self, receive: Receive, settings: Settings):
        self.receive = receive
        self.settings = settings
        self.content: bytes | None = None

    async def read(self) -> None:
        """Raises ApiError for a body that is too large or too slow, ClientLeft where the client does not wait for its end."""
        found = bytearray()
        try:
            async with asyncio.timeout(self.settings.receive_timeout):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    found += message.get("body", b"")
                    if len(found) > self.settings.body_limit:
                        raise _too_large(self.settings.body_limit)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
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
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
