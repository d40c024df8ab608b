"""Connections that do not wait for ever: uvicorn sets no limit until it has sent a first response."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# A connection whose other end vanished without a word is closed after this silence and these probes: seconds, seconds, count.
PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class TimedConnection(H11Protocol):
    """A connection that is closed where the head of a request, or a body that nobody reads, is not there after `seconds`.

    The bodies that an application reads have a limit there (see `guards`)."""

    def __init__(self, seconds: float, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.seconds = seconds
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in PROBES:
                own.setsockopt(socket.IPPROTO_TCP, option, value)
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Begin to count where the client owes something, stop where it has sent it."""
        unread = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is not h11.IDLE and not unread:
            self._stop()
        elif self._limit is None:
            self._limit = self.loop.call_later(self.seconds, self._close)

    def _stop(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
