"""Running an application: uvicorn, which stops taking requests at SIGTERM and gives those under way time to end."""

from __future__ import annotations

import socket
from types import FrameType
from typing import Any

import uvicorn

from ..errors import UsageError
from ..service import Service
from .app import create_app
from .settings import Settings


class DrainingServer(uvicorn.Server):
    """Tells the service at the first signal, so that it takes nothing more while answers under way go on."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.drain()
        super().handle_exit(sig, frame)


def listen(llm: Any, settings: Settings, *, host: str, port: int, drain: int, **tls: str) -> None:
    """Serve `llm` until a signal ends it. Raises UsageError where the address cannot be used."""
    try_address(host, port)
    app = create_app(llm, settings)
    options: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": drain, "server_header": False, **tls}
    config = uvicorn.Config(app, host=host, port=port, **options)
    DrainingServer(config, app.state.service).run()


def try_address(host: str, port: int) -> None:
    """Raise UsageError, in one line, for an address that is taken or not this machine's."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise UsageError(f"Cannot listen at {host} port {port}: {error}. Choose another --port or --host.") from None
