"""What a plan has to know of an accelerator: how much of its memory, how much host memory behind it, how fast the way is."""

from dataclasses import replace

from ..errors import UsageError, first_line
from .demand import RUNTIME
from .placement import Plan
from .sizes import format_size, parse_size

SHARE = 0.95  # of the free memory, when nothing was asked for
HOST_SHARE = 0.8


def budget(asked: str | int | None, name: str, free: int) -> int:
    """Bytes of the device's memory that may be used. UsageError for more than is free."""
    if asked is None:
        return int(free * SHARE)
    wanted = parse_size(asked)
    if wanted > free:
        raise UsageError(
            f"--memory {format_size(wanted)} is more than the {format_size(free)} that are free on {name}."
        )
    return wanted


def host_room(asked: str | int | None, limit: int) -> int:
    """Bytes of exact weights that the host may hold: what was asked for (or most of what there is) without the process itself."""
    whole = int(limit * HOST_SHARE) if asked is None else parse_size(asked)
    if whole < RUNTIME:
        raise UsageError(
            f"--host-memory {format_size(whole)} is too small: the process itself takes {format_size(RUNTIME)}."
        )
    return whole - RUNTIME


def short_of(error: RuntimeError) -> str:
    """What torch says of memory that it did not get, in few words."""
    return ". ".join(first_line(error).split(". ")[:2])


def linked(plan: Plan, name: str, room: int, link: float, disk: float, note: str) -> Plan:
    """`plan` with what is streamed placed behind the device. `link`, `disk`: bytes/s from pinned host memory and from disk."""
    held = min(room, plan.streamed_bytes)
    late = plan.streamed_bytes - held
    seconds = max(plan.streamed_bytes / link if link else 0.0, late / disk if disk else 0.0)
    notes = [f"host memory holds {format_size(held)} of that"] if plan.streamed_bytes else []
    if late:
        notes.append(f"{format_size(late)} come from disk on every pass: a larger --host-memory would be faster")
    placed = replace(
        plan,
        device=name,
        host_bytes=room,
        link_bytes_per_second=plan.streamed_bytes / seconds if seconds else link,
    )
    return placed.noted(*notes, note)
