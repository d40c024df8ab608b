"""A request: one prompt on its way through the scheduler, and what its caller is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .advance import Advance
from .logprobs import TokenLogprob
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
    # Log-probabilities of these tokens, and, in the first step, of the prompt's; None where they were not asked for.
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True)
class Completion:
    """A finished generation; finish_reason is "stop", "length" or "cancelled"."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats
    # Log-probabilities of the tokens, and of the prompt's tokens but the first; None where they were not asked for.
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


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
        """Count one pass and, if it gave tokens or was all there is, make its step."""
        self.meter.count(advance, share)
        if self.streams and (advance.tokens or self.sequence.finish_reason == "length"):
            self.steps.append(self._step(advance))
        self.finished = self.sequence.finish_reason is not None
        if self.finished or advance.tokens:
            self.heard()

    def _step(self, advance: Advance) -> Step:
        sequence, reason = self.sequence, self.sequence.finish_reason
        text = self.reply.take(final=reason is not None)
        first = sequence.produced == len(advance.tokens)
        logprobs = None if sequence.params.logprobs is None else advance.logprobs
        prompt = sequence.prompt_logprobs if first and sequence.params.prompt_logprobs is not None else None
        stats = self.meter.stats()
        return Step(text, advance.tokens, advance.drafted, advance.accepted, reason, stats, logprobs, prompt)

    def end(self, error: BaseException | None = None) -> None:
        """End without a last step: because of `error`, or because it was cancelled."""
        self.error = error
        self.finished = True
        self.heard()

    def completion(self) -> Completion:
        """All that was generated."""
        self.reply.take(final=True)
        sequence = self.sequence
        ids = sequence.tokens[sequence.prompt_length :]
        logprobs = None if sequence.params.logprobs is None else sequence.logprobs
        prompt = None if sequence.params.prompt_logprobs is None else sequence.prompt_logprobs
        reason = sequence.finish_reason or "cancelled"
        return Completion(self.reply.text, ids, reason, self.meter.stats(), logprobs, prompt)
