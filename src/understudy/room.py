"""Room for a text and its reply, in the context and in memory that is free now: what does not fit is refused before it begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from .cache import Cache
from .errors import RoomError, UsageError
from .params import SamplingParams
from .plan.machine import spare_bytes
from .plan.sizes import format_size
from .sequence import TokenSequence

# Tokens that a reply in a conversation has room for at least, unless fewer were asked for: one that ends after a word is no turn.
LEAST_REPLY = 16


def short(needed: int) -> int | None:
    """The bytes of memory that are free now, where they are fewer than `needed`; None: they suffice."""
    if not needed or needed <= (free := spare_bytes()):
        return None
    return free


@dataclass(frozen=True)
class TextRoom:
    """The room that a loaded model has for each of its texts."""

    # Tokens of a prompt and its continuation together.
    context: int
    # What texts are kept in. Where it lies in memory of the host, that is taken as texts grow.
    cache: Cache

    def check(self, tokens: int, params: SamplingParams, *, chat: bool = False) -> None:
        """Raise RoomError unless a prompt of `tokens` tokens fits with the least of its reply, and memory holds all of that.

        params: with every value given. chat: is it a conversation? Raises UsageError where min_tokens alone does not fit."""
        what = "conversation" if chat else "prompt"
        least = max(min(params.max_new_tokens, LEAST_REPLY), 1) if chat else 1
        if tokens + least > self.context:
            raise RoomError(
                f"The {what} has {tokens} tokens and its reply needs {least} at least, but the context has room for {self.context}"
                f" in all: {'send fewer turns' if chat else 'shorten it'} or raise --context."
            )
        if tokens + params.min_tokens > self.context:
            raise UsageError(
                f"min_tokens must be at most {self.context - tokens} here, got {params.min_tokens}: the {what} has {tokens} tokens,"
                f" and the context has room for {self.context} in all."
            )
        self._check_memory(what, tokens, min(params.max_new_tokens, self.context - tokens))

    def lacking(self, sequences: Sequence[TokenSequence]) -> str:
        """What memory that is free now lacks for all of `sequences`, which have rows, to reach their ends, in words; empty:
        nothing."""
        needed = sum(self.cache.growth(min(sequence.longest, self.context), sequence.row) for sequence in sequences)
        if (free := short(needed)) is None:
            return ""
        return (
            f"The text needs up to {format_size(needed)} more memory, and {format_size(free)} is free now: ask for a shorter reply"
            " (max_new_tokens) or end other programs."
        )

    def _check_memory(self, what: str, tokens: int, reply: int) -> None:
        """Raise RoomError unless memory that is free now holds a text of `tokens` tokens with a reply of `reply` tokens."""
        needed = self.cache.growth(tokens + reply)
        if (free := short(needed)) is None:
            return
        room = bisect_right(range(self.context + 1), free, key=self.cache.growth) - 1
        raise RoomError(
            f"The {what} has {tokens} tokens and its reply up to {reply}: they need {format_size(needed)} more memory, and"
            f" {format_size(free)} is free, with room for {room} tokens in all. Ask for a shorter reply (max_new_tokens)"
            f"{', send fewer turns' if what == 'conversation' else ''} or end other programs.",
            code="out_of_memory",
        )
