"""Which cache row holds the longest beginning of a text, and which free row a text should take.

Keys, values and states depend on a text alone, so what one row holds of a text is, bit for bit, what another row would compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .cache import Cache
from .sequence import TokenSequence

# A text in a free row is given up first where less of its prompt than this many tokens would be lost.
WORTH_KEEPING = 64
# A prompt waits for another one that reads so many tokens of it: their arithmetic takes about as long as a sweep.
WORTH_WAITING = 128
# Tokens that are compared at once.
COMPARED = 256


@dataclass(frozen=True)
class KeptText:
    """What a sequence that has ended left in its cache row."""

    # The tokens whose keys and values are there.
    tokens: list[int]
    # How many of them are its prompt.
    prompt_length: int


@dataclass(frozen=True)
class Prefix:
    """The beginning of a text, in a cache row that holds it."""

    row: int
    # In tokens.
    length: int


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two lists share from their start."""
    most = min(len(first), len(second))
    start = 0
    while start < most and first[start : start + COMPARED] == second[start : start + COMPARED]:
        start += COMPARED
    for index in range(min(start, most), min(start + COMPARED, most)):
        if first[index] != second[index]:
            return index
    return most


def longest(
    held: Iterable[tuple[int, Sequence[int]]], text: Sequence[int], reach: Callable[[int, int], int]
) -> Prefix | None:
    """The row, among `held` (rows and their tokens), that can give most of the beginning of `text`; None: none can give any.

    `reach(row, length)`: the longest length, at most `length`, that the row can go back to."""
    best = None
    for row, tokens in held:
        length = common_prefix(tokens, text)
        if length > (best.length if best else 0) and (reached := reach(row, length)) > (best.length if best else 0):
            best = Prefix(row, reached)
    return best


def row_for(text: Sequence[int], free: Sequence[int], kept: Mapping[int, KeptText], elsewhere: int = 0) -> int:
    """The row of `free` that `text` should take. `kept`: what rows hold, the one that was left first in front. `elsewhere`:
    tokens of `text` that some row holds which is not free.

    It goes on in the row that holds most of it, if nearly all of the prompt there is its own too: then nothing is copied and
    nothing is lost. Else it takes an empty row, or the one that was left first."""
    common = {row: common_prefix(kept[row].tokens, text) for row in free if row in kept}
    most = max(elsewhere, *common.values(), 1) if common else 1
    for row, length in common.items():
        if length == most and kept[row].prompt_length - length < WORTH_KEEPING:
            return row
    empty = [row for row in free if row not in kept]
    return empty[0] if empty else next(row for row in kept if row in free)


def reads_for(cache: Cache, reader: TokenSequence, sequence: TokenSequence) -> bool:
    """Is `reader` about to read so much of the text of `sequence` that copying it later is better than reading it twice?"""
    common = common_prefix(reader.tokens, sequence.to_share)
    more = common - max(cache.lengths[sequence.row], cache.lengths[reader.row])
    # Where layers cannot go back far, the reader must end about where the texts part.
    return more >= WORTH_WAITING and len(reader.tokens) - common <= cache.goes_back
