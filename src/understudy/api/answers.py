"""Answers of all endpoints: requests are followed to their end, and told whole or as a stream, as their form writes them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ..replies.splitter import ReplyPiece, joined
from ..request import Request, Step
from ..service import Call, Service
from . import figures
from .errors import ApiError, answer_to
from .forms import Form, Said
from .origins import Origins, TokenOrigin, TokenPart
from .protocol import SamplingFields
from .settings import AnswerSettings


def too_slow(settings: AnswerSettings) -> ApiError:
    """What ends a request that took too long."""
    seconds = settings.request_timeout
    return ApiError(408, f"The request took more than {seconds:g} s, this server's limit.", code="timeout")


@dataclass(frozen=True)
class ReplyCounts:
    """What was read out of the replies of one answer."""

    # How many replies might call tools, and how many calls they made.
    with_tools: int
    calls: int
    # Tokens of reasoning.
    reasoning: int


def uncounted(counts: ReplyCounts) -> None:
    """Who hears of replies that nobody counts."""


@dataclass
class ApiAnswer:
    """The answer to one body: its requests are submitted when this is made. Raises Unavailable."""

    service: Service
    settings: AnswerSettings
    body: SamplingFields
    requests: Sequence[Request]
    form: Form
    # When the body came, by the clock of `time.perf_counter`.
    since: float = field(default_factory=time.perf_counter)
    # Told what its replies were when the answer ends, however it does.
    tell: Callable[[ReplyCounts], None] = uncounted

    def __post_init__(self) -> None:
        limit = self.settings.request_timeout
        # What waiting for the model took is a part of it; 0 would be any time.
        left = max(limit - (time.perf_counter() - self.since), 0.001) if limit else 0.0
        self.call = Call(self.service, self.requests, left)
        # What follows each reply; None where the body does not ask how its tokens came about.
        self._origins = [Origins(request.reply) if self.body.return_drafting else None for request in self.requests]
        self.service.submit(self.requests)

    async def whole(self) -> dict[str, Any]:
        """All of it as one object. Raises ApiError for what ended a request."""
        last: dict[int, Step] = {}
        whole = [Said() for _ in self.requests]
        async with aclosing(self._steps()) as steps:
            async for found in steps:
                if found is not None:
                    index, step = found
                    whole[index].add(self._said(index, step))
                    last[index] = step
        return self.form.whole(whole, self._figures(last))

    async def events(self) -> AsyncGenerator[str]:
        """The stream. What ends a request ends it with an event that holds the error."""
        last: dict[int, Step] = {}
        try:
            for begun in self.form.opening():
                yield begun
            async with aclosing(self._steps()) as steps:
                async for found in steps:
                    if found is None:
                        yield self.form.alive()
                        continue
                    index, step = found
                    last[index] = step
                    for event in self.form.piece(index, self._said(index, step)):
                        yield event
        except ApiError as error:
            # The status was sent: the only way to tell is in the stream.
            yield self.form.failure(error)
            return
        for closing in self.form.closing(self._figures(last)):
            yield closing

    def _said(self, index: int, step: Step) -> Said:
        """What `step` says, as far as the body asks for it."""
        prompt = step.prompt_logprobs if self.body.scores_prompt else None
        reason = step.finish_reason
        splitter = self.form.splitters[index]
        origins = self._origins[index]
        found = self._pieces(index, step)
        pieces = [piece for piece, _ in found]
        if splitter is not None and splitter.calls and reason == "stop":
            reason = "tool_calls"
        said = Said(step.text, pieces, step.token_ids, reason, step.logprobs, prompt)
        if origins is not None:
            said.pieces = joined(pieces)
            said.tokens = [TokenPart(piece.kind, piece.text, origin) for piece, origin in found if piece.call is None]
            said.figures = {**figures.drafting(step.stats), **figures.pace(step.stats, self.requests[index])}
        return said

    def _pieces(self, index: int, step: Step) -> list[tuple[ReplyPiece, TokenOrigin]]:
        """The pieces of `step`, those of each token by themselves where the body asks for that."""
        splitter, origins = self.form.splitters[index], self._origins[index]
        texts = [(step.text, TokenOrigin(False, 0))] if origins is None else [*origins.divided(step)]
        found: list[tuple[ReplyPiece, TokenOrigin]] = []
        for text, origin in texts:
            if splitter is not None:
                found += [(piece, origin) for piece in splitter.feed(text)]
            elif text:
                found.append((ReplyPiece("content", text), origin))
        if splitter is not None and step.finish_reason is not None:
            latest = TokenOrigin(False, 0) if origins is None else origins.latest
            found += [(piece, latest) for piece in splitter.finish(step.finish_reason)]
        return found

    async def _steps(self) -> AsyncGenerator[tuple[int, Step] | None]:
        """The steps of all requests. Raises ApiError for what ended one of them."""
        try:
            async with aclosing(self.call.steps(self.settings.keep_alive)) as steps:
                async for found in steps:
                    yield found
        except TimeoutError:
            raise too_slow(self.settings) from None
        finally:
            self.tell(self._counts())
        if self.call.error is not None:
            raise answer_to(self.call.error)

    def _counts(self) -> ReplyCounts:
        pairs = zip(self.requests, self.form.splitters, strict=True)
        replies = [(splitter, request.reply) for request, splitter in pairs if splitter is not None]
        return ReplyCounts(
            with_tools=sum(splitter.may_call for splitter, _ in replies),
            calls=sum(splitter.calls for splitter, _ in replies),
            reasoning=sum(splitter.reasoning_tokens(reply.text, reply.ends) for splitter, reply in replies),
        )

    def _figures(self, last: dict[int, Step]) -> dict[str, Any]:
        found: dict[str, Any] = {"usage": figures.usage(self.requests, self._counts().reasoning)}
        if len(self.requests) == 1:
            stats = last[0].stats
            found["timings"] = figures.timings(self.requests[0], stats)
            found["understudy"] = figures.drafting(stats)
        return found
