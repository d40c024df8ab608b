"""Which exact weights stay in fast memory for good, and what a round then takes.

There are two ways to keep some. A *residual part* is kept beside the substitute: it is not streamed any more, and drafting is as it
was. A *whole* Linear is kept instead of its substitute: draft and target share the exact weight, which takes less room (16
bits instead of 4.5 + 16), but every draft level then reads 16 bits of each of its weights instead of 4.5.

Either way they are spread evenly over the pass, beginning with a streamed part. The link idles only while the ring is full; with
residents at the start of a pass the ring, filled while drafting, would stay full until they are done, with residents
at the end it would fill and wait for the rest of them. Spread, the arithmetic of each gives the link time for what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = 8  # of a draft, before any was seen: about what `pace` begins with
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the room for residents, given to whole Linears; the better is taken


@dataclass(frozen=True)
class LinearSize:
    """One Linear in bytes: its substitute, as far as it is held, its exact weight, and how many residual parts it has."""

    substitute: int
    exact: int
    parts: int

    @property
    def extra(self) -> int:
        """Fast memory that keeping it whole takes more."""
        return self.exact - self.substitute


@dataclass(frozen=True)
class Kept:
    """Numbers of residual parts and of whole Linears that stay; what they take beyond the substitutes, and what still streams."""

    parts: frozenset[int]
    whole: frozenset[int]
    taken: int
    streamed: int


@dataclass(frozen=True)
class Speeds:
    """Bytes per second of the link and of fast memory (0: not known), and levels of a usual draft (0: nothing reads the substitute
    to draft)."""

    link: float = 0.0
    memory: float = 0.0
    levels: float = 0

    def round_seconds(self, streamed: int, ring: int, level: int, exact: int) -> float:
        """Of drafting and one pass, when a level reads `level` bytes, and the pass `exact` of which `streamed` come by the link.

        The link fills the ring while drafting; then it brings the rest, beside the arithmetic, which reads the exact weights
        once at least. What arithmetic takes beyond reading is left out: it is the same in any placement."""
        drafting = self.levels * level / self.memory
        early = min(ring, streamed, drafting * self.link)
        return drafting + max((streamed - early) / self.link, exact / self.memory)


UNKNOWN = Speeds()


def keep(
    parts: Sequence[int], linears: Sequence[LinearSize], room: int, resident: str, speeds: Speeds, ring: int
) -> Kept:
    """What stays in `room` bytes. `resident`: none, residual, whole, or auto, which takes the fastest of some mixtures."""
    if resident == "none":
        return _mixture(parts, linears, 0, 0)
    if resident == "whole":
        return _mixture(parts, linears, room, 0)
    every = [_mixture(parts, linears, int(room * share), room) for share in SHARES]
    if resident == "residual" or not (speeds.link and speeds.memory):
        return every[0]
    exact, substitute = sum(linear.exact for linear in linears), sum(linear.substitute for linear in linears)

    def seconds(kept: Kept) -> float:
        level = substitute + sum(linears[i].extra for i in kept.whole)
        return speeds.round_seconds(kept.streamed, ring if kept.streamed else 0, level, exact)

    return min(every, key=seconds)


def _mixture(parts: Sequence[int], linears: Sequence[LinearSize], for_whole: int, room: int) -> Kept:
    """Whole Linears in `for_whole` bytes, then residual parts of the others in what is left of `room`."""
    able = [i for i, linear in enumerate(linears) if linear.parts]
    whole = (
        frozenset(able[i] for i in spread([linears[i].extra for i in able], for_whole)) if for_whole else frozenset()
    )
    taken = sum(linears[i].extra for i in whole)
    owners = [i for i, linear in enumerate(linears) for _ in range(linear.parts)]
    rest = [number for number, owner in enumerate(owners) if owner not in whole]
    kept = frozenset(rest[i] for i in spread([parts[number] for number in rest], max(room - taken, 0)))
    nbytes = sum(parts[number] for number in kept)
    return Kept(kept, whole, taken + nbytes, sum(parts[number] for number in rest) - nbytes)


def spread(sizes: Sequence[int], room: int) -> frozenset[int]:
    """Numbers of those to keep, evenly over the pass, in at most `room` bytes; all of them if they fit."""
    total, kept, seen, chosen = sum(sizes), 0, 0, []
    if total <= room:
        return frozenset(range(len(sizes)))
    for number, size in enumerate(sizes):
        seen += size
        if kept + size <= room * seen / total and kept + size <= room:
            kept += size
            chosen.append(number)
    return frozenset(chosen)
