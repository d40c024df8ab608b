"""Answers of both completion endpoints: requests are made of a body, followed to their end, and told whole or as a stream.

A stream of a chat is: a chunk with the role, a chunk for each pass, an empty one with the reason why it ended, figures if they were
asked for, and `[DONE]`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ..chat_template import encode
from ..errors import RoomError
from ..request import Request, Step
from ..sampling import derived_seed
from ..service import Call, Service
from ..token_texts import TokenTexts
from . import figures
from .errors import ApiError, answer_to
from .forms import ChatForm, Form, OldLogprobs, Said, TextForm
from .protocol import ChatBody, CompletionBody, SamplingFields
from .settings import AnswerSettings

# Tokens of a text completion where the request does not say: what the OpenAI API takes.
COMPLETION_TOKENS = 16
# A comment of a stream: it says that the server is alive, and clients skip it.
ALIVE = ": alive\n\n"
DONE = "data: [DONE]\n\n"


def check_model(name: str | None, settings: AnswerSettings) -> None:
    """Raise ApiError (404) for a model that is another one; no name is this one's."""
    if name not in (None, "", settings.model_name):
        raise ApiError(404, f"The model {name!r} is not here: only {settings.model_name!r} is.", param="model")


def chat_requests(llm: Any, body: ChatBody, settings: AnswerSettings) -> tuple[list[Request], Form]:
    """The requests of a chat. Raises ApiError or UsageError."""
    body.refuse_unsupported()
    told = dict(body.chat_template_kwargs or {})
    if body.continue_final_message:
        told |= {"continue_final_message": True, "add_generation_prompt": bool(body.add_generation_prompt)}
    elif body.add_generation_prompt is not None:
        told["add_generation_prompt"] = body.add_generation_prompt
    ids = llm.chat_ids([message.plain() for message in body.messages], **told)
    return _requests(llm, [ids], body, settings, chat=True), ChatForm(TokenTexts(llm.tokenizer))


def completion_requests(llm: Any, body: CompletionBody, settings: AnswerSettings) -> tuple[list[Request], Form]:
    """The requests of text completions. Raises ApiError or UsageError."""
    body.refuse_unsupported()
    prompts = [llm.prompt_ids(prompt) for prompt in body.prompts()]
    requests = _requests(llm, prompts, body, settings, chat=False)
    texts = TokenTexts(llm.tokenizer)
    echoes = [llm.tokenizer.decode(prompt) if body.echo else "" for prompt in prompts for _ in range(body.n or 1)]
    tokens = [prompt if body.echo else [] for prompt in prompts for _ in range(body.n or 1)]
    # Without log-probabilities of the prompt, its text comes first and counts all the same.
    scored = bool(body.echo) and body.logprobs is not None
    logprobs = [OldLogprobs(texts, own, echo, 0 if scored else len(echo)) for own, echo in zip(tokens, echoes, strict=True)]
    return requests, TextForm(echoes, logprobs, scored)


def _requests(
    llm: Any, prompts: Sequence[list[int]], body: SamplingFields, settings: AnswerSettings, *, chat: bool
) -> list[Request]:
    """`n` requests for each prompt, each with a seed of its own: the first has the seed that was asked for."""
    count = 1 if body.n is None else body.n
    if not 1 <= count <= settings.max_choices:
        raise ApiError(400, f"n must be from 1 to {settings.max_choices}, got {count}.", param="n")
    if not prompts:
        raise ApiError(400, "prompt is empty.", param="prompt")
    params = body.params(llm.context if chat else COMPLETION_TOKENS)
    text = "" if body.prediction is None else body.prediction.text()
    prediction = encode(llm.tokenizer, text, add_special_tokens=False) if text else []
    found = []
    for prompt in prompts:
        for index in range(count):
            own = replace(params, seed=derived_seed(params.seed, index)) if params.gives("seed") and index else params
            try:
                request = llm.request(list(prompt), own, chat=chat, stop_ids=body.stop_token_ids or ())
            except RoomError as error:
                raise replace(answer_to(error), param="messages" if chat else "prompt") from None
            request.sequence.prediction = prediction
            found.append(request)
    return found


# What a body is read as, and how requests are made of it, for each path.
URLS: Mapping[str, tuple[type[SamplingFields], Callable[[Any, Any, AnswerSettings], tuple[list[Request], Form]]]] = {
    "/v1/chat/completions": (ChatBody, chat_requests),
    "/v1/completions": (CompletionBody, completion_requests),
}


@dataclass
class ApiAnswer:
    """The answer to one body: its requests are submitted when this is made. Raises Unavailable."""

    service: Service
    settings: AnswerSettings
    body: SamplingFields
    requests: Sequence[Request]
    form: Form

    def __post_init__(self) -> None:
        self.id = f"{self.form.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
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
                    whole[index].add(self._said(step))
                    last[index] = step
        choices = []
        for index, (request, said) in enumerate(zip(self.requests, whole, strict=True)):
            said.reason = str(request.sequence.finish_reason)
            choices.append(self._with_ids(self.form.choice(index, said), index, said.token_ids, first=True))
        return {**self._object(self.form.whole), "choices": choices, **self._figures(last)}

    async def events(self) -> AsyncGenerator[str]:
        """The stream. What ends a request ends it with an event that holds the error."""
        last: dict[int, Step] = {}
        try:
            for index in range(len(self.requests)):
                begun = self.form.begin(index)
                yield ALIVE if begun is None else self._chunk(self._with_ids(begun, index, [], first=True))
            async with aclosing(self._steps()) as steps:
                async for found in steps:
                    if found is None:
                        yield ALIVE
                        continue
                    index, step = found
                    last[index] = step
                    for chunk in self._pieces(index, step):
                        yield chunk
        except ApiError as error:
            # The status was sent: the only way to tell is in the stream.
            yield self._event(error.body())
            return
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield self._event({**self._object(self.form.chunk), "choices": [], **self._figures(last)})
        yield DONE

    def _pieces(self, index: int, step: Step) -> Iterator[str]:
        """The chunks of one pass: its text, and then the reason why it was the last one."""
        said = self._said(step)
        if step.text or self.body.return_token_ids or said.logprobs or said.prompt_logprobs is not None:
            yield self._chunk(self._with_ids(self.form.piece(index, said), index, step.token_ids))
        if step.finish_reason is not None:
            yield self._chunk(self.form.end(index, step.finish_reason))

    def _said(self, step: Step) -> Said:
        """What `step` says, as far as the body asks for it."""
        prompt = step.prompt_logprobs if self.body.scores_prompt else None
        return Said(step.text, step.token_ids, step.finish_reason, step.logprobs, prompt)

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

    def _with_ids(self, choice: dict[str, Any], index: int, ids: list[int], first: bool = False) -> dict[str, Any]:
        """`choice` with the ids of its tokens, and at `first` those of the prompt, where they were asked for."""
        if self.body.return_token_ids:
            sequence = self.requests[index].sequence
            choice["token_ids"] = ids
            if first:
                choice["prompt_token_ids"] = sequence.tokens[: sequence.prompt_length]
        return choice

    def _figures(self, last: dict[int, Step]) -> dict[str, Any]:
        found: dict[str, Any] = {"usage": figures.usage(self.requests)}
        if len(self.requests) == 1:
            stats = last[0].stats
            found["timings"] = figures.timings(self.requests[0], stats)
            found["understudy"] = figures.drafting(stats)
        return found

    def _object(self, kind: str) -> dict[str, Any]:
        model = self.settings.model_name
        return {"id": self.id, "object": kind, "created": self.created, "model": model, "system_fingerprint": None}

    def _chunk(self, choice: dict[str, Any]) -> str:
        return self._event({**self._object(self.form.chunk), "choices": [choice]})

    def _event(self, content: dict[str, Any]) -> str:
        return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"
