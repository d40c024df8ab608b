"""The ASGI application: `create_app(llm, settings)` makes one, without anything global."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from .. import __version__
from ..api import asking
from ..api.answers import ApiAnswer
from ..api.anthropic_messages import body as messages_body
from ..api.anthropic_messages.body import CountBody, MessagesBody
from ..api.anthropic_messages.form import PATH as MESSAGES
from ..api.conversation import conversation_of
from ..api.errors import ApiError, answer_to, error_body, invalid
from ..api.forms import Form
from ..api.openai_responses import body as responses_body
from ..api.openai_responses.body import ResponsesBody
from ..api.openai_responses.form import ResponsesForm
from ..api.protocol import ChatBody, CompletionBody, DetokenizeBody, SamplingFields, TokenizeBody
from ..chat_template import encode
from ..errors import UnderstudyError
from ..request import Request as Generation
from ..service import Service, Unavailable
from .guards import Guards
from .metrics import Metrics
from .page import PageFiles
from .responses import EventStream, PatientJson, error_response
from .settings import Settings
from .state import state_of

IGNORED = "X-Understudy-Ignored"
# Ignored fields that are named, and characters of each name.
MOST_NAMES, LONGEST_NAME = 20, 40
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False,
}  # fmt: skip

# What the OpenAPI document says of errors, and of answers that may be streams.
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be served.", "content": {"application/json": {"schema": ERROR}}},
    "5XX": {"description": "The server cannot serve it now.", "content": {"application/json": {"schema": {"type": "object"}}}},
}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


def create_app(llm: Any, settings: Settings, figures: Callable[[], Awaitable[bytes]] | None = None) -> FastAPI:
    """The application that serves `llm`, an LLM. It runs passes from its start to its shutdown, and does not close `llm`.

    `figures`: what `/metrics` answers; None: the figures of this application, `state.metrics`."""
    metrics = Metrics(llm, settings.model_name)
    service = Service(llm, settings.max_queue, metrics.ended)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(llm.maker.grammars.warm)
        service.start()
        yield
        service.close()

    # Pages of documentation load scripts from elsewhere: they are left out.
    app = FastAPI(
        title="Understudy",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
        responses=ERRORS,
    )
    app.state.service = service
    app.state.metrics = metrics
    endpoints = Endpoints(llm, settings, service, metrics, figures)
    app.post("/v1/chat/completions", responses=STREAMED)(endpoints.chat)
    app.post("/v1/completions", responses=STREAMED)(endpoints.completions)
    app.post("/v1/responses", responses=STREAMED)(endpoints.responses)
    app.post(MESSAGES, responses=STREAMED)(endpoints.messages)
    app.post(f"{MESSAGES}/count_tokens")(endpoints.count_tokens)
    app.get("/v1/models")(endpoints.models)
    app.get("/v1/models/{name:path}")(endpoints.model)
    app.post("/tokenize")(endpoints.tokenize)
    app.post("/detokenize")(endpoints.detokenize)
    app.get("/tokenizer_info")(endpoints.tokenizer_info)
    app.get("/health")(endpoints.health)
    app.get("/version")(endpoints.version)
    app.get("/understudy")(endpoints.state)
    app.get("/metrics", response_class=PlainTextResponse)(endpoints.metrics_text)
    _tell_errors(app)
    if settings.page:
        app.add_middleware(PageFiles)
    app.add_middleware(Guards, settings=settings)
    if settings.origins:
        # Around the guards, so that a page can read why it was refused.
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"], expose_headers=[IGNORED]
        )
    return app


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The header that names the fields of a body that were ignored. Clients may call them anything: some are told, in ASCII."""
    told = [quote(name[:LONGEST_NAME], safe=" ") for name in names[:MOST_NAMES]]
    return {IGNORED: ", ".join(told)} if told else {}


class Endpoints:
    """The handlers of one application."""

    def __init__(
        self,
        llm: Any,
        settings: Settings,
        service: Service,
        metrics: Metrics,
        figures: Callable[[], Awaitable[bytes]] | None,
    ):
        self.llm = llm
        self.figures = figures
        self.settings = settings
        self.service = service
        self.metrics = metrics
        self.began = int(time.time())

    async def chat(self, body: ChatBody) -> Response:
        """The assistant's next message."""
        return await self._answered(body, body.ignored(), partial(asking.chat_requests, self.llm, body, self.settings))

    async def completions(self, body: CompletionBody) -> Response:
        """The continuation of one prompt, or of many."""
        return await self._answered(body, body.ignored(), partial(asking.completion_requests, self.llm, body, self.settings))

    async def responses(self, body: ResponsesBody) -> Response:
        """The next items of a conversation, as Codex asks for them."""
        asked = responses_body.chat_of(body)
        try:
            make = partial(asking.responses_requests, self.llm, body, asked, self.settings)
            return await self._answered(asked.body, asked.ignored, make)
        except ApiError as error:
            if not body.stream or error.code != "context_length_exceeded":
                raise
            # Codex makes a conversation shorter where an event tells it to, and takes a status for the end.
            form = ResponsesForm(body, asked.tools, self.settings.model_name, ())
            return StreamingResponse([*form.opening(), form.failure(error)], media_type="text/event-stream")

    async def messages(self, body: MessagesBody) -> Response:
        """The assistant's next message, as Claude Code asks for it."""
        asked = messages_body.chat_of(body)
        make = partial(asking.messages_requests, self.llm, body, asked, self.settings)
        return await self._answered(asked.body, asked.ignored, make, partial(error_body, path=MESSAGES))

    async def count_tokens(self, body: CountBody) -> dict[str, Any]:
        """How many tokens the prompt of a message has, its system message and tools counted."""
        asked = messages_body.chat_of(body)
        asking.check_model(body.model, self.settings)
        conversation = await asyncio.to_thread(asking.message_prompt, self.llm, asked)
        return {"input_tokens": len(conversation.ids)}

    async def _answered(
        self,
        body: SamplingFields,
        ignored: Sequence[str],
        make: Callable[[], tuple[list[Generation], Form]],
        told: Callable[[ApiError], dict[str, Any]] = ApiError.body,
    ) -> Response:
        asking.check_model(body.model, self.settings)
        headers = ignored_header(ignored)
        # A long text takes a while: other answers go on meanwhile.
        requests, form = await asyncio.to_thread(make)
        try:
            answer = ApiAnswer(self.service, self.settings, body, requests, form)
        except Unavailable as error:
            self.metrics.rejected("unavailable" if self.service.trouble else "queue_full")
            raise answer_to(error) from None
        if body.stream:
            return EventStream(answer.events(), headers, answer.call.cancel)
        return PatientJson(answer.whole, headers, answer.call.cancel, self.settings.keep_alive, told)

    async def models(self) -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [self._card()]}

    async def model(self, name: str) -> dict[str, Any]:
        """The model called `name`."""
        asking.check_model(name, self.settings)
        return self._card()

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.settings.model_name,
            "object": "model",
            "created": self.began,
            "owned_by": "understudy",
            "max_model_len": self.llm.context,
        }

    def tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        """Text, or a conversation, to token ids."""
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "Give either prompt or messages.", param="prompt")
        if body.messages is not None:
            asked = ChatBody(messages=body.messages, tools=body.tools)
            tokens = conversation_of(self.llm, asked).ids
        else:
            tokens = encode(self.llm.tokenizer, str(body.prompt), add_special_tokens=body.add_special_tokens)
        found: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": self.llm.context}
        if body.return_token_strs:
            found["token_strs"] = self.llm.tokenizer.convert_ids_to_tokens(tokens)
        return found

    def detokenize(self, body: DetokenizeBody) -> dict[str, Any]:
        """Token ids to text."""
        tokens = self.llm.prompt_ids(body.tokens) if body.tokens else []
        return {"prompt": self.llm.tokenizer.decode(tokens)}

    async def tokenizer_info(self) -> dict[str, Any]:
        """What a client needs to know of the tokenizer."""
        tokenizer = self.llm.tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": len(tokenizer),
            "model_max_length": self.llm.context,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "chat_template": tokenizer.chat_template,
        }

    async def health(self) -> Response:
        """200 as long as requests are served."""
        trouble = self.service.trouble
        return JSONResponse({"status": trouble or "ok"}, 503 if trouble else 200)

    async def version(self) -> dict[str, str]:
        """The version of the server."""
        return {"version": __version__}

    async def state(self) -> dict[str, Any]:
        """What lies where by the plan, and what the engine is at."""
        return state_of(self.llm, self.settings)

    async def metrics_text(self) -> Response:
        """Figures for Prometheus."""
        text = self.metrics.text() if self.figures is None else await self.figures()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _tell_errors(app: FastAPI) -> None:
    """Every error is answered in the form that clients know."""

    async def unreadable(request: Request, error: Any) -> Response:
        return error_response(invalid(error.errors()), request.url.path)

    async def unknown(request: Request, error: Any) -> Response:
        told = ApiError(error.status_code, str(error.detail), headers=error.headers or {})
        return error_response(told, request.url.path)

    async def failed(request: Request, error: Exception) -> Response:
        return error_response(answer_to(error), request.url.path)

    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(HTTPException, unknown)
    for kind in (ApiError, UnderstudyError, Exception):
        app.add_exception_handler(kind, failed)
