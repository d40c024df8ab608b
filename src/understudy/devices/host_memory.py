"""How much of host memory may hold what streams to an accelerator."""

from __future__ import annotations

from ..errors import UsageError
from ..plan.demand import RUNTIME
from ..plan.sizes import format_size, parse_size

# of the memory this process could hold, when no --host-memory was given
HOST_SHARE = 0.8


def host_room(asked: str | int | None, limit: int) -> int:
    """Bytes of exact weights that the host may hold: what was asked for, or most of `limit`, without the process itself."""
    whole = int(limit * HOST_SHARE) if asked is None else parse_size(asked)
    if whole < RUNTIME:
        raise UsageError(
            f"--host-memory {format_size(whole)} is too small: the process itself takes {format_size(RUNTIME)}."
        )
    return whole - RUNTIME
