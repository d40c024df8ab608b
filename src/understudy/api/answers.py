"""Answers of all endpoints: requests are followed to their end, and told whole or as a stream, as their form writes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ..replies.splitter import ReplyPiece
from ..request import Request, Step
from ..service import Call, Service
from . import figures
from .errors import ApiError, answer_to
from .forms import Form, Said
from .protocol import SamplingFields
from .settings import AnswerSettings


@dataclass
class ApiAnswer:
    """The answer to one body: its requests are submitted when this is made. Raises Unavailable."""

    service: Service
    settings: AnswerSettings
    body: SamplingFields
    requests: Sequence[Request]
    form: Form

    def __post_init__(self) -> None:
        self.call = Call(self.service, self.requests, self.settings.request_timeout)
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
        if splitter is None:
            pieces = [ReplyPiece("content", step.text)] if step.text else []
        else:
            pieces = splitter.feed(step.text)
            if reason is not None:
                pieces += splitter.finish(reason)
                reason = "tool_calls" if splitter.calls and reason == "stop" else reason
        return Said(step.text, pieces, step.token_ids, reason, step.logprobs, prompt)

    async def _steps(self) -> AsyncGenerator[tuple[int, Step] | None]:
        """The steps of all requests. Raises ApiError for what ended one of them."""
        try:
            async with aclosing(self.call.steps(self.settings.keep_alive)) as steps:
                async for found in steps:
                    yield found
        except TimeoutError:
            seconds = self.settings.request_timeout
            raise ApiError(408, f"The request took more than {seconds:g} s, this server's limit.", code="timeout") from None
        if self.call.error is not None:
            raise answer_to(self.call.error)

    def _figures(self, last: dict[int, Step]) -> dict[str, Any]:
        pairs = zip(self.requests, self.form.splitters, strict=True)
        replies = [(splitter, request.reply) for request, splitter in pairs if splitter is not None]
        reasoning = sum(splitter.reasoning_tokens(reply.text, reply.ends) for splitter, reply in replies)
        found: dict[str, Any] = {"usage": figures.usage(self.requests, reasoning)}
        if len(self.requests) == 1:
            stats = last[0].stats
            found["timings"] = figures.timings(self.requests[0], stats)
            found["understudy"] = figures.drafting(stats)
        return found
