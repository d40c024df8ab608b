"""A request: one prompt on its way through the scheduler, and what its caller is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .engine import Advance
from .sequence import TokenSequence
from .stats import RequestMeter, Share, Stats
from .text import TextStream


def nobody() -> None:
    """Who hears of a request that nobody listens to."""


@dataclass(frozen=True)
class Step:
    """What one pass gave a request."""

    # Text that is decided now.
    text: str
    token_ids: list[int]
    # Nodes drafted in this pass, and how many of them the target accepted.
    drafted: int
    accepted: int
    # None while the request goes on.
    finish_reason: str | None
    # The figures so far.
    stats: Stats


@dataclass(frozen=True)
class Completion:
    """A finished generation; finish_reason is "stop", "length" or "cancelled"."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats


@dataclass(eq=False)
class Request:
    """What a caller asked for. `steps` are those that the caller has not taken yet."""

    sequence: TokenSequence
    reply: TextStream
    meter: RequestMeter
    # Whether `steps` are wanted; without them only the completion is.
    streams: bool = False
    steps: deque[Step] = field(default_factory=deque)
    # The caller has left, and the scheduler does not know it yet.
    cancelled: bool = False
    # What ended the request, in place of a completion.
    error: BaseException | None = None
    # Nothing more will come. Set last, since the caller may look from another thread.
    finished: bool = False
    # Called whenever there is a new step and at the end, in the thread that runs the pass; it must not block.
    heard: Callable[[], None] = nobody

    def record(self, advance: Advance, share: Share) -> None:
        """Count one pass and, if it gave tokens, make its step."""
        self.meter.count(advance, share)
        if self.streams and advance.tokens:
            reason = self.sequence.finish_reason
            text = self.reply.take(final=reason is not None)
            self.steps.append(Step(text, advance.tokens, advance.drafted, advance.accepted, reason, self.meter.stats()))
        self.finished = self.sequence.finish_reason is not None
        if self.finished or advance.tokens:
            self.heard()

    def end(self, error: BaseException | None = None) -> None:
        """End without a last step: because of `error`, or because it was cancelled."""
        self.error = error
        self.finished = True
        self.heard()

    def completion(self) -> Completion:
        """All that was generated."""
        self.reply.take(final=True)
        ids = self.sequence.tokens[self.sequence.prompt_length :]
        return Completion(self.reply.text, ids, self.sequence.finish_reason or "cancelled", self.meter.stats())
