"""What whoever starts a server decides."""

from __future__ import annotations

from dataclasses import dataclass

from ..api.settings import AnswerSettings
from .callers import LOOPBACK

MIB = 1 << 20


@dataclass(frozen=True)
class Settings(AnswerSettings):
    """Limits and names of one server, beside those of its answers. Times are seconds, sizes bytes."""

    # Keys of which a request must carry one; none: no key is asked for.
    api_keys: tuple[str, ...] = ()
    # Requests that may wait for a place before others are turned away.
    max_queue: int = 64
    # The largest body.
    body_limit: int = 32 * MIB
    # The longest a body may take to arrive.
    receive_timeout: float = 30.0
    # Names that the Host header may have; empty: any. They keep web pages from reaching a server that has no key.
    hosts: tuple[str, ...] = LOOPBACK
    # Origins of web pages that may call; none: no page may.
    origins: tuple[str, ...] = ()
    # Whether a page for people is served at /.
    page: bool = True
