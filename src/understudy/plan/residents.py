"""Which exact weights stay in fast memory for good, and what a round then takes.

There are two ways to keep some. A *residual part* is kept beside the substitute: it is not streamed any more, and drafting is as it
was. A *whole* Linear is kept instead of its substitute: draft and target share the exact weight, which takes less room (16
bits instead of 4.5 + 16), but every draft level then reads 16 bits of each of its weights instead of 4.5.

Where nothing is left to stream, the room that remains makes passes faster: a *decoded* Linear has its exact weight as it is beside
its substitute, so that no pass puts it together. Where nothing drafts, a whole one does the same in less room.

Either way they are spread evenly over the pass, beginning with a streamed part. The link idles only while the ring is full; with
residents at the start of a pass the ring, filled while drafting, would stay full until they are done, with residents
at the end it would fill and wait for the rest of them. Spread, the arithmetic of each gives the link time for what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

# Levels of a draft before any was seen: about what drafters begin with.
LEVELS = 8
# Of the room for residents, given to whole Linears; the fastest is taken.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# So many groups of residual parts fit into their room at least.
GROUPS = 8


@dataclass(frozen=True)
class LinearSize:
    """One Linear in memory."""

    # Its substitute; 0 where that is not held.
    substitute_bytes: int
    # Its exact weight.
    exact_bytes: int
    # How many residual parts it has.
    parts: int
    # Blocks of 64 outputs.
    blocks: int = 0
    # What a device holds of its substitute to decode all parts with; 0: they need none.
    decoding_bytes: int = 0
    # The decoder layer it is in; -1: none, as the head.
    layer: int = -1
    # What a token uses of it: less than all of what belongs to experts.
    share: float = 1.0
    # Is it always whole?
    always: bool = False

    @property
    def part_blocks(self) -> list[int]:
        """Blocks of each part: `blocks` cut evenly."""
        edges = [self.blocks * place // self.parts for place in range(self.parts + 1)] if self.parts else []
        return [last - first for first, last in pairwise(edges)]

    @property
    def extra_bytes(self) -> int:
        """What keeping it whole takes more than its substitute."""
        return self.exact_bytes - self.substitute_bytes


@dataclass(frozen=True)
class Kept:
    """Which exact weights stay in fast memory."""

    # Numbers of residual parts.
    parts: frozenset[int]
    # Numbers of whole Linears.
    whole: frozenset[int]
    # Numbers of decoded Linears: none of their parts is kept.
    decoded: frozenset[int] = field(default_factory=frozenset, kw_only=True)
    # What both take beyond the substitutes.
    taken_bytes: int
    # What a pass still streams: bytes, and residual parts.
    streamed_bytes: int
    streamed_parts: int = 0


@dataclass(frozen=True)
class LinkSpeeds:
    """What decides how long a round takes."""

    # Bytes per second from where the weights stream; 0: not known.
    link_bytes_per_second: float = 0.0
    # Bytes per second of fast memory; 0: not known.
    memory_bytes_per_second: float = 0.0
    # Levels of a usual draft; 0: nothing reads the substitute to draft.
    draft_levels: float = 0

    def round_seconds(self, streamed: float, ring: int, draft_level: float, exact: float) -> float:
        """Seconds of one draft and one pass; all arguments are bytes. Both speeds must be known.

        A draft level reads `draft_level`; the pass reads `exact`, of which `streamed` cross the link. The link fills the
        `ring` while drafting; then it brings the rest, beside the arithmetic, which reads the exact weights once at least.
        What arithmetic takes beyond reading is left out: it is the same in any placement."""
        drafting = self.draft_levels * draft_level / self.memory_bytes_per_second
        early = min(ring, streamed, drafting * self.link_bytes_per_second)
        late = (streamed - early) / self.link_bytes_per_second
        return drafting + max(late, exact / self.memory_bytes_per_second)


UNKNOWN = LinkSpeeds()


def keep(
    parts: Sequence[int],
    linears: Sequence[LinearSize],
    room: int,
    resident: str,
    speeds: LinkSpeeds,
    ring: int,
    together: int = 0,
) -> Kept:
    """What stays in `room` bytes, where the parts have the bytes `parts` and the ring has `ring`.

    `resident`: none, residual, whole, or auto, which takes the fastest of SHARES. `together`: bytes up to which neighbouring parts
    of a Linear stay or stream together, so that few pieces of work are asked for; 0: each by itself."""
    if resident == "none":
        return _mixture(parts, linears, 0, 0)
    if resident == "whole":
        return _mixture(parts, linears, room, 0)
    if resident == "residual":
        return _mixture(parts, linears, 0, room, together)
    mixtures = [_mixture(parts, linears, int(room * share), room, together) for share in SHARES]
    fastest = _fastest(mixtures, linears, speeds, ring)
    return fastest if fastest.streamed_bytes else _decoded(parts, linears, room, fastest, speeds)


def _fastest(mixtures: Sequence[Kept], linears: Sequence[LinearSize], speeds: LinkSpeeds, ring: int) -> Kept:
    """The one of `mixtures` whose rounds take the least time; residual parts alone, the first, where speeds are not known."""
    if not (speeds.link_bytes_per_second and speeds.memory_bytes_per_second):
        return mixtures[0]
    exact = sum(linear.exact_bytes * used_share(linear.share, LEVELS) for linear in linears)
    substitute = sum(linear.substitute_bytes * linear.share for linear in linears)

    def seconds(kept: Kept) -> float:
        draft_level = substitute + sum(linears[i].extra_bytes * linears[i].share for i in kept.whole)
        streamed = kept.streamed_bytes
        return speeds.round_seconds(streamed, ring if streamed else 0, draft_level, exact)

    return min(mixtures, key=seconds)


def _decoded(parts: Sequence[int], linears: Sequence[LinearSize], room: int, kept: Kept, speeds: LinkSpeeds) -> Kept:
    """`kept`, of which nothing streams, with as many Linears decoded as `room` allows; whole ones where nothing drafts."""
    if not speeds.draft_levels:
        whole = _mixture(parts, linears, room, 0)
        if not whole.streamed_bytes:
            return whole
    owners = _owners(linears)
    able = sorted({owners[number] for number in kept.parts})
    own_bytes = dict.fromkeys(able, 0)
    for number in kept.parts:
        own_bytes[owners[number]] += parts[number]
    extra = [max(linears[i].exact_bytes - own_bytes[i], 0) for i in able]
    chosen = sorted(spread(extra, room - kept.taken_bytes))
    decoded = frozenset(able[place] for place in chosen)
    return replace(
        kept,
        parts=frozenset(number for number in kept.parts if owners[number] not in decoded),
        decoded=decoded,
        taken_bytes=kept.taken_bytes + sum(linears[i].exact_bytes - own_bytes[i] for i in decoded),
    )


def _owners(linears: Sequence[LinearSize]) -> list[int]:
    """For each residual part, the number of its Linear."""
    return [i for i, linear in enumerate(linears) for _ in range(linear.parts)]


def _mixture(parts: Sequence[int], linears: Sequence[LinearSize], for_whole: int, room: int, together: int = 0) -> Kept:
    """Whole Linears in `for_whole` bytes, then residual parts of the others in what is left of `room`."""
    whole, kept = frozenset(i for i, linear in enumerate(linears) if linear.always), frozenset[int]()
    taken = 0
    owners = _owners(linears)
    # What every token uses comes before what only some do.
    for every in (True, False):
        able = [i for i, one in enumerate(linears) if one.parts and not one.always and (one.share == 1) == every]
        room_here = for_whole - taken
        chosen = spread([linears[i].extra_bytes for i in able], room_here) if for_whole and able else frozenset()
        whole |= {able[i] for i in chosen}
        taken += sum(linears[able[i]].extra_bytes for i in chosen)
    rest = [number for number, owner in enumerate(owners) if owner not in whole]
    left = max(room - taken, 0)
    for every in (True, False):
        numbers = [number for number in rest if (linears[owners[number]].share == 1) == every]
        groups = _grouped(numbers, owners, parts, min(together, left // GROUPS))
        chosen = spread([sum(parts[number] for number in group) for group in groups], left)
        own = {number for i in chosen for number in groups[i]}
        left -= sum(parts[number] for number in own)
        kept |= own
    nbytes = sum(parts[number] for number in kept)
    return Kept(
        parts=kept,
        whole=whole,
        taken_bytes=taken + nbytes,
        streamed_bytes=sum(parts[number] for number in rest) - nbytes,
        streamed_parts=len(rest) - len(kept),
    )


def _grouped(numbers: Sequence[int], owners: Sequence[int], parts: Sequence[int], most: int) -> list[list[int]]:
    """The parts `numbers`, ascending, those of a Linear in groups of about `most` bytes or fewer, which are about equal."""
    groups: list[list[int]] = []
    for _, found in groupby(numbers, key=lambda number: owners[number]):
        own = list(found)
        whole = sum(parts[number] for number in own)
        wanted = whole / -(-whole // most) if 0 < most < whole else most
        room = 0.0
        for number in own:
            if room < parts[number] / 2:
                groups.append([])
                room = wanted
            groups[-1].append(number)
            room -= parts[number]
    return groups


def used_share(share: float, nodes: float) -> float:
    """What so many nodes use of something of which each uses `share`, whichever part that is."""
    return float(1 - (1 - share) ** nodes)


def spread(sizes: Sequence[int], room: int) -> frozenset[int]:
    """Numbers of the sizes to keep, evenly over the pass, in at most `room` bytes; all of them if they fit."""
    total = sum(sizes)
    if total <= room:
        return frozenset(range(len(sizes)))
    kept = 0
    seen = 0
    chosen = []
    for number, size in enumerate(sizes):
        seen += size
        if kept + size <= room * seen / total and kept + size <= room:
            kept += size
            chosen.append(number)
    return frozenset(chosen)
