"""Connections that do not wait for ever, as uvicorn's do until a first response, and that answer clients who send no more."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .responses import ENDED

# A connection whose other end vanished without a word is closed after this silence and these probes: seconds, seconds, count.
PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
# Seconds after which an answer that is not there yet must show whether such a client has left, and between two looks at that.
GRACE = 0.25


class TimedConnection(H11Protocol):
    """A connection that is closed where the head of a request, or a body that nobody reads, is not there after `seconds`.

    The bodies that an application reads have a limit there (see `guards`).

    A client that has sent its last byte may wait for its answer (`nc -N` does) or have left: both look the same, until something is
    sent to it, which a system whose program has left refuses. So an answer that is long in coming is told by the event `ENDED`, in
    the state of its scope, to send a sign of life; the connection ends once that was refused. Over TLS, where asyncio has no
    connections that are open one way, it ends at once."""

    def __init__(self, seconds: float, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.seconds = seconds
        self._limit: asyncio.TimerHandle | None = None
        # Set soon after the client sent its last byte and waits, or has left.
        self._ended = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self.app_state = {**self.app_state, ENDED: self._ended}

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

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open for an answer, now that the client has sent its last byte."""
        if self.scheme == "https" or not self._owes():
            return False
        if self._watch is None:
            self._watch = self.loop.call_later(GRACE, self._look_who_left)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._watch is not None and not self._owes():
            self._close()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _owes(self) -> bool:
        """Is there a whole request without a whole answer?"""
        return (
            self.cycle is not None
            and not self.cycle.response_complete
            and self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        )

    def _look_who_left(self) -> None:
        """Have signs of life sent to a client that sends no more, and close the connection once they are refused."""
        self._ended.set()
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(GRACE, self._look_who_left)

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
