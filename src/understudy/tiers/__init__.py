"""Slow memory. A tier knows numbered extents of bytes and how to bring one here; it knows nothing of weights.

The rule that keeps text right: what a fetch was asked to fill is garbage until `wait()` returned without raising."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .route import Route

TIERS = {
    "disk": "understudy.tiers.disk:DiskTier",
    "pinned": "understudy.tiers.pinned:PinnedTier",
}


@dataclass(frozen=True)
class Extent:
    """`nbytes` bytes of a file from `offset` on, a multiple of 4096."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Traffic:
    """What a tier has brought so far. `busy_seconds`: at least one read was under way, so bytes over it is speed.

    `waited_seconds`: a device waited for it, while the host went on."""

    bytes_read: int = 0
    reads: int = 0
    busy_seconds: float = 0.0
    waited_seconds: float = 0.0


@dataclass(frozen=True)
class ReadSettings:
    """How a disk is read."""

    # bytes of one read
    block: int
    # reader threads
    threads: int
    # bytes per second that it is slowed down to; 0: not slowed down
    throttle: float = 0.0


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
    # bytes that may be held in host memory in front of the disk, where a device has memory of its own
    host_memory: int = 0


@dataclass(frozen=True)
class DiskProbe:
    """What to read a disk with, and how fast that was. `direct` False: through the page cache, and `note` says why."""

    bytes_per_second: float
    block: int
    threads: int
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
