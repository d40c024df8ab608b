"""Slow memory. A tier knows numbered extents of bytes and how to bring one here; it knows nothing of weights.

The rule that keeps text right: what a fetch was asked to fill is garbage until `wait()` returned without raising."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..registry import find

if TYPE_CHECKING:
    from torch import Tensor

    from .route import Route
    from .streams import Streams

# Functions that open a tier: see `open_tier`.
TIERS: dict[str, str] = {
    "disk": "understudy.tiers.disk:open_disk",
    "pinned": "understudy.tiers.pinned:open_pinned",
}
# in place of a name: what the device is made for
AUTO = "auto"


@dataclass(frozen=True)
class Extent:
    """A stretch of a file."""

    path: Path
    # bytes from the start of the file, a multiple of 4096
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Traffic:
    """What a tier has brought so far."""

    bytes_read: int = 0
    reads: int = 0
    # in which at least one read was under way, so bytes over it is the link's speed
    busy_seconds: float = 0.0
    # in which a device waited for a part, while the host went on
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class ReadSettings:
    """How weights are read."""

    # bytes of one read from a disk
    block: int
    # reader threads
    threads: int
    # bytes per second that it is slowed down to; 0: not slowed down
    throttle: float = 0.0
    # the tier that weights are streamed from, a name in `TIERS`; auto: the one that the device is made for
    tier: str = AUTO


@dataclass(frozen=True)
class Streaming:
    """What is brought through a ring, and how."""

    # every extent there is, by number
    extents: Sequence[Extent]
    # names the extents that are streamed, by number, and their order
    route: "Route"
    read: ReadSettings
    # called with a number and the bytes that came first for it; raises if they are not what they should be
    check: Callable[[int, "Tensor"], None]
    # numbers of the extents to hold in host memory in front of the disk, where a device has memory of its own
    held: Collection[int] = ()


@dataclass(frozen=True)
class DiskProbe:
    """What to read a disk with, and how fast that was."""

    bytes_per_second: float
    # bytes of one read
    block: int
    # reader threads
    threads: int
    # whether reads go past the page cache; if not, `note` says why
    direct: bool
    note: str


class Fetch(Protocol):
    """One extent on its way."""

    def done(self) -> bool:
        """True once `wait` would not have to wait; also when it would raise."""
        ...

    def wait(self) -> None:
        """Return when what the caller does next may use the bytes; TransferError when it never may."""
        ...


class Tier(Protocol):
    """Bytes that can be brought here, extent by extent, in the order asked for."""

    # Whether the tier itself calls `Streaming.check` for each extent where its bytes first come in; else the ring does.
    checks: bool

    @property
    def extents(self) -> Sequence[Extent]: ...

    @property
    def traffic(self) -> Traffic: ...

    @property
    def note(self) -> str:
        """What a person should know about this link, such as a slower way taken; empty when all is well."""
        ...

    def fetch(self, index: int, into: "Tensor") -> Fetch:
        """Begin to fill `into` (uint8, page-aligned, whole pages) with extent `index`. Returns at once."""
        ...

    def release(self) -> None:
        """The caller has begun its last use of something fetched: a later fetch may overwrite it once that is over."""
        ...

    def cancel(self) -> None:
        """Forget every fetch asked for so far. On return none of them can overwrite what a later fetch brings."""
        ...

    def close(self) -> None:
        """Cancel, and give back threads, files and memory. Nothing is written into any `into` afterwards."""
        ...


def tier_names() -> tuple[str, ...]:
    """All that --tier may be."""
    return (AUTO, *TIERS)


def open_tier(name: str, streaming: Streaming, streams: "Streams | None" = None) -> Tier:
    """The tier called `name` over `streaming`.

    `streams`: of the device that fetches go to; None where they go to this process's memory. UsageError where there is no
    such tier or it cannot bring bytes there; TransferError where it cannot be opened."""
    tier: Tier = find("tier", TIERS, name)(streaming, streams)
    return tier
