"""Listening: a thread of its own answers from before the model is loaded until a signal ends the server."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import UsageError
from .app import create_app_of
from .connections import TimedConnection
from .guards import Guards
from .loading import Loading
from .models import ServedModels
from .page import PageFiles
from .settings import Settings

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds between two looks at whether the time for what still runs is over.
LOOK = 0.1
# Seconds that a connection without a request is kept, if --receive-timeout allows it. Clients keep theirs for 5 (httpx, and with it
# the packages of OpenAI and Anthropic) or 15 (aiohttp): with uvicorn's own 5 a request may meet a connection that is being closed.
KEPT = 75
# Connections that the system keeps until they are accepted.
BACKLOG = 2048
# Seconds that clients have to read how their requests ended, after the time for what still runs.
LAST_WORDS = 5
# Seconds after that in which the connections that are left are closed.
CLOSING = 5


class Gate:
    """The application of now: one that says how loading goes on, and later the one of the model."""

    def __init__(self, settings: Settings):
        self.loading = Loading()
        self.app: ASGIApp = Guards(PageFiles(self.loading) if settings.page else self.loading, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Listener:
    """Listens at `host` and `port` while it is entered; `serve` gives it a model.

    `drain`: seconds that requests have to finish once a signal has come. `tls`: what uvicorn is told of certificates that
    `callers.check_certificates` has found to be fine."""

    def __init__(self, settings: Settings, host: str, port: int, drain: int, **tls: Any):
        self.settings = settings
        self.drain = drain
        self.gate = Gate(settings)
        options: dict[str, Any] = {"log_level": "warning", "server_header": False, "lifespan": "off", "ws": "none", **tls}
        self.config = uvicorn.Config(
            self.gate,
            http=partial(TimedConnection, settings.receive_timeout),  # type: ignore[arg-type]
            timeout_graceful_shutdown=drain + LAST_WORDS + CLOSING,
            timeout_keep_alive=KEPT,
            # The same one, whatever else is installed.
            loop="asyncio",
            **options,
        )
        self.config.load()
        self.sockets = bound(host, port)
        self.server = uvicorn.Server(self.config)
        self.thread = threading.Thread(target=self.server.run, args=(self.sockets,), name="understudy-http", daemon=True)

    def __enter__(self) -> Listener:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join()

    def serve(self, models: ServedModels) -> int | None:
        """Serve `models` until a signal comes and what runs then is finished, and close them. Called in the main thread.

        Returns the signal. A second one ends the process without waiting for the pass under way."""
        app = create_app_of(models)
        stopping = Stopping(models, self.server)
        before = {sig: signal.signal(sig, stopping) for sig in SIGNALS}
        models.start()
        try:
            self.gate.app = app
            while self.thread.is_alive():
                self.thread.join(LOOK)
                late = 0.0 if stopping.since is None else time.monotonic() - stopping.since - self.drain
                if late > 0:
                    models.abandon("the server is shutting down")
                if late > LAST_WORDS:
                    self._hang_up()
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
            models.close()
        return stopping.signal

    def _hang_up(self) -> None:
        """Close all connections: of clients that do not read, and of those whose requests do not arrive."""
        for connection in list(self.server.server_state.connections):
            # The loop may be gone.
            with suppress(RuntimeError):
                connection.loop.call_soon_threadsafe(connection.transport.abort)


class Stopping:
    """What signals do: the first lets nothing more in, the second ends the process at once."""

    def __init__(self, models: ServedModels, server: uvicorn.Server):
        self.models = models
        self.server = server
        # When the first signal came, by the monotonic clock.
        self.since: float | None = None
        # Which one it was.
        self.signal: int | None = None

    def __call__(self, sig: int, frame: FrameType | None) -> None:
        if self.since is not None:
            os._exit(128 + sig)
        self.since = time.monotonic()
        self.signal = sig
        self.models.drain()
        self.server.should_exit = True


def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets at all addresses of `host`. Raises UsageError, in one line, for one that is taken or not this machine's."""
    found: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            own = socket.socket(family, kind, proto)
            found.append(own)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            own.bind(address)
            own.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        for own in found:
            own.close()
        raise UsageError(f"Cannot listen at {host} port {port}: {error}. Choose another --port or --host.") from None
    return found
