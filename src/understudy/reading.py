"""How much of each prompt a pass reads: what rides free beside the drafts of others, and a little more, so that reading and
decoding both go on."""

from __future__ import annotations

from collections.abc import Sequence

from .models.cost import PassCost

# Reading never makes a pass longer by less than this many seconds, which nobody notices.
UNNOTICED = 0.05
# Where nobody is decoding, a pass takes at most so many times as long as one of one node, or so many seconds: who comes meanwhile
# must wait for its end.
ALONE = 8
ALONE_SECONDS = 1.0


def readable(cost: PassCost, drafted: int, decoding: int, reading: int, most: int) -> int:
    """How many nodes prompts may have together, in a pass with `drafted` nodes and room for `most`: at least one for each of them.

    Beside `decoding` texts, the time that is added to the pass is at most that of the pass without them, and more only where more
    texts are `reading` than decoding."""
    usual = cost.seconds(max(drafted, 1))
    if decoding:
        longest = usual + max(usual * max(1.0, reading / decoding), UNNOTICED)
    else:
        longest = max(ALONE * usual, ALONE_SECONDS)
    return min(max(cost.nodes_within(longest, most) - drafted, reading), most - drafted)


def shared(unread: Sequence[int], room: int) -> list[int]:
    """How many tokens of each text to read, where so many are `unread` (the oldest text first): at least one of each, and at most
    `room` in all.

    Half of the room is the oldest text's, so that none waits for ever. The other half is for those with the least to read: they are
    soon decoding, in passes that are run anyway."""
    assert room >= len(unread), f"{len(unread)} prompts in a pass with room for {room} nodes of them"
    counts = [1] * len(unread)
    left = room - len(unread)
    shortest = sorted(range(len(unread)), key=lambda number: unread[number])
    for number, most in ((0, left - left // 2), *((number, left) for number in shortest)):
        more = min(unread[number] - counts[number], most, left)
        counts[number] += more
        left -= more
    return counts
