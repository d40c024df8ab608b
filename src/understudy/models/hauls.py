"""Parts that come by one copy: neighbours in the file, of one Linear. A device is asked for few large copies, not many small ones,
and where their bytes are weights as they are, they multiply together.

The processor, which reads from a disk and uses each part as soon as it is there, has hauls of one part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..tiers import Extent
from ..tiers.memory import aligned

# bytes of the largest haul of more than one part
MOST_BYTES = 32 << 20
# so many of the largest fit into the ring at least, so that some come while one is used
IN_RING = 8


@dataclass(frozen=True)
class Haul:
    """Parts that lie one after another in a file."""

    # their numbers, ascending
    parts: tuple[int, ...]
    # for each of them: where its bytes begin in what is brought
    starts: tuple[int, ...]
    extent: Extent

    @classmethod
    def of(cls, part: int, extent: Extent) -> Haul:
        return cls((part,), (0,), extent)

    def with_next(self, part: int, extent: Extent, most: int) -> Haul | None:
        """This and `part` behind it; None where it lies elsewhere, or both are more than `most` bytes."""
        begin = aligned(self.extent.nbytes)
        here = extent.path == self.extent.path and extent.offset == self.extent.offset + begin
        if not here or begin + extent.nbytes > most:
            return None
        whole = Extent(self.extent.path, self.extent.offset, begin + extent.nbytes)
        return Haul((*self.parts, part), (*self.starts, begin), whole)


def hauls_of(parts: Sequence[tuple[int, int]], extents: Mapping[int, Extent], most: int) -> list[Haul]:
    """The hauls of `parts`, each with the number of its Linear, in the order of a pass; of at most `most` bytes, unless a single
    part is larger. `extents`: where each part lies."""
    hauls: list[Haul] = []
    before = -1
    for number, linear in parts:
        extent = extents[number]
        joined = hauls[-1].with_next(number, extent, most) if linear == before else None
        if joined is None:
            hauls.append(Haul.of(number, extent))
        else:
            hauls[-1] = joined
        before = linear
    return hauls


def largest_haul(ring_bytes: int) -> int:
    """Bytes of the largest haul of several parts through a ring of so many bytes."""
    return min(MOST_BYTES, ring_bytes // IN_RING)
