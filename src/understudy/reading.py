"""How much of each prompt a pass reads: what rides free beside the drafts of others, and more where a row that decodes sooner is
worth the time, so that reading and decoding both go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .models.cost import PassCost

# Reading never makes a pass longer by less than this many seconds, which nobody notices.
UNNOTICED = 0.05
# Where nobody is decoding, a pass takes at most so many times as long as one of one node, or so many seconds: who comes meanwhile
# must wait for its end.
ALONE = 8
ALONE_SECONDS = 1.0
# What was seen of room that no prompt was there for keeps so much of its weight with each pass.
KEPT = 0.95
# Reading beyond what rides free costs its whole time where a third of that goes unused, and nothing where all of it is used: then
# later passes would take that time.
WASTE = 3.0


@dataclass
class ReadingRoom:
    """Decides how many tokens of prompts a pass reads. What rides free costs nothing; what is read beyond costs time, unless later
    passes would be full of prompts anyway."""

    # The share of what rode free beside drafts that no prompt was there for, a moving average. At first nothing is known to be.
    unused: float = 0.0

    def room(self, cost: PassCost, drafted: int, decoding: int, unread: Sequence[int], most: int) -> int:
        """How many nodes prompts may have together, in a pass with `drafted` nodes of `decoding` texts and room for `most`. At
        least one for each prompt; so many tokens of each are `unread`.

        Beside texts that are decoding, the time that is added to the pass is at most that of the pass without prompts, and more
        only where more texts are reading than decoding."""
        usual = cost.seconds(max(drafted, 1))
        reading = len(unread)
        if not decoding:
            return _within(cost, max(ALONE * usual, ALONE_SECONDS), drafted, reading, most)
        free = cost.nodes_within(usual, most) - drafted
        self.unused = KEPT * self.unused + (1 - KEPT) * max(free - sum(unread), 0) / max(free, 1)
        if not reading:
            return 0
        longest = usual + max(usual * max(1.0, reading / decoding), UNNOTICED)
        limit = _within(cost, longest, drafted, reading, most)
        room = min(max(free, reading), limit)
        while room < limit:
            left = [
                tokens - count for tokens, count in zip(unread, shared(unread, room), strict=True) if tokens > count
            ]
            if not left:
                break
            waiting = usual / decoding * _passes(left, max(free, 1))
            if waiting < min(WASTE * self.unused, 1.0) * cost.extra(drafted + room, min(left)):
                break
            room = min(room + min(left), limit)
        return room


def _within(cost: PassCost, seconds: float, drafted: int, reading: int, most: int) -> int:
    """How many nodes prompts may have in a pass of so many seconds."""
    return min(max(cost.nodes_within(seconds, most) - drafted, reading), most - drafted)


def _passes(left: Sequence[int], free: int) -> float:
    """How many passes prompts wait, all together, if the one with the fewest tokens `left` is read to its end in later passes, so
    many tokens in each, which ride `free`: it waits for whole passes, and the others for what it takes up."""
    least = min(left)
    return math.ceil(least / free) + (len(left) - 1) * least / free


def shared(unread: Sequence[int], room: int) -> list[int]:
    """How many tokens of each text to read, where so many are `unread` (the oldest text first): at least one of each, and at most
    `room` in all.

    Half of the room is the oldest text's, so that none waits for ever. The other half is for those with the least to read: they are
    soon decoding, in passes that are run anyway."""
    if not unread:
        return []
    assert room >= len(unread), f"{len(unread)} prompts in a pass with room for {room} nodes of them"
    counts = [1] * len(unread)
    left = room - len(unread)
    shortest = sorted(range(len(unread)), key=lambda number: unread[number])
    for number, most in ((0, left - left // 2), *((number, left) for number in shortest)):
        more = min(unread[number] - counts[number], most, left)
        counts[number] += more
        left -= more
    return counts
