"""Parts that come by one copy: neighbours in the file. A device is asked for few large copies, not many small ones.

Those of an accelerator are of one Linear, and where their bytes are weights as they are, they multiply together. Those of the
processor, which uses parts as soon as they are there, are smaller and of several Linears: to ask for a part takes as long as a
small product does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...tiers import Extent
from ...tiers.memory import aligned

# bytes of the largest haul of more than one part: of an accelerator, and of the processor, where it is as much as one read brings
MOST_BYTES, MOST_HERE = 32 << 20, 4 << 20
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
        if not _behind(self.extent, extent) or begin + extent.nbytes > most:
            return None
        whole = Extent(self.extent.path, self.extent.offset, begin + extent.nbytes)
        return Haul((*self.parts, part), (*self.starts, begin), whole)


@dataclass(frozen=True)
class Berth:
    """Where a part is found once the ring has brought it."""

    # the number of its haul
    haul: int
    # where it begins in that
    start: int
    # is it the last of the haul?
    last: bool

    @property
    def first(self) -> bool:
        """Is it the first of the haul?"""
        return self.start == 0


def berths_of(hauls: Sequence[Haul]) -> dict[int, Berth]:
    """The berth of each part, by the part's number."""
    return {
        part: Berth(number, start, part == haul.parts[-1])
        for number, haul in enumerate(hauls)
        for part, start in zip(haul.parts, haul.starts, strict=True)
    }


def hauls_of(parts: Sequence[tuple[int, int]], extents: Mapping[int, Extent], most: int) -> list[Haul]:
    """The hauls of `parts`, each with a number that those of one haul have in common (that of its Linear, say), in the order of a
    pass; of at most `most` bytes, unless a single part is larger. What follows one another is cut about evenly. `extents`: where
    each part lies."""
    return [haul for chain in _chains(parts, extents, most) for haul in _cut(chain, extents, most)]


def _chains(parts: Sequence[tuple[int, int]], extents: Mapping[int, Extent], most: int) -> list[list[int]]:
    """Parts of one number that follow one another in the file, of which any neighbours could be a haul by where they lie."""
    chains: list[list[int]] = []
    before = -1
    for number, common in parts:
        if most and common == before and _behind(extents[chains[-1][-1]], extents[number]):
            chains[-1].append(number)
        else:
            chains.append([number])
        before = common
    return chains


def _behind(first: Extent, second: Extent) -> bool:
    """Does `second` lie right after `first` in one file?"""
    return second.path == first.path and second.offset == first.offset + aligned(first.nbytes)


def _cut(chain: Sequence[int], extents: Mapping[int, Extent], most: int) -> list[Haul]:
    """The parts of `chain` in hauls of at most `most` bytes and of about the same size."""
    whole = sum(aligned(extents[number].nbytes) for number in chain)
    wanted = -(-whole // -(-whole // max(most, 1)))
    hauls = [Haul.of(chain[0], extents[chain[0]])]
    for number in chain[1:]:
        full = hauls[-1].extent.nbytes >= wanted
        joined = None if full else hauls[-1].with_next(number, extents[number], most)
        if joined is None:
            hauls.append(Haul.of(number, extents[number]))
        else:
            hauls[-1] = joined
    return hauls


def largest_haul(ring_bytes: int, accelerator: bool) -> int:
    """Bytes of the largest haul of several parts through a ring of so many bytes."""
    return min(MOST_BYTES if accelerator else MOST_HERE, ring_bytes // IN_RING)
