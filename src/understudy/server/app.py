"""The ASGI application: `create_app(llm, settings)` makes one, without anything global."""

from __future__ import annotations

import asyncio
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
from ..api.anthropic_messages import body as messages_body
from ..api.anthropic_messages.body import CountBody, MessagesBody
from ..api.anthropic_messages.form import PATH as MESSAGES
from ..api.errors import ApiError, answer_to, error_body, invalid
from ..api.openai_responses.body import ResponsesBody
from ..api.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from ..errors import UnderstudyError
from . import tokens
from .guards import Guards
from .models import ServedModels
from .page import PageFiles
from .pending import PendingAnswer
from .responses import EventStream, PatientJson, error_response
from .settings import Settings
from .state import state_of

IGNORED = "X-Understudy-Ignored"
# Ignored fields that are named, and characters of each name.
MOST_NAMES, LONGEST_NAME = 20, 40
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False,
}  # fmt: skip

# What FastAPI says of a body that it could not parse.
UNPARSED = "There was an error parsing the body"

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
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def create_app(
    llm: Any, settings: Settings, figures: Callable[[], Awaitable[bytes]] | None = None, replica: str | None = None
) -> FastAPI:
    """The application that serves `llm`, an LLM. It runs passes from its start to its shutdown, and does not close `llm`.

    `figures`: what `/metrics` answers; None: the figures of this application, `state.models.metrics`. `replica`: what this one of
    several behind one address is called; None: it is alone."""
    return create_app_of(ServedModels.of(llm, settings), figures, replica)


def create_app_of(
    models: ServedModels, figures: Callable[[], Awaitable[bytes]] | None = None, replica: str | None = None
) -> FastAPI:
    """The application that serves `models`. It runs passes from its start to its shutdown, and closes `models` then.

    `figures` and `replica`: as for `create_app`."""
    settings = models.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for served in models.loaded.values():
            await asyncio.to_thread(served.llm.maker.grammars.warm)
        models.start()
        yield
        await asyncio.to_thread(models.close)

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
    app.state.models = models
    endpoints = Endpoints(models, figures, replica)
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

    def __init__(self, models: ServedModels, figures: Callable[[], Awaitable[bytes]] | None, replica: str | None):
        self.models_served = models
        self.figures = figures
        self.replica = replica
        self.settings = models.settings

    async def chat(self, body: ChatBody) -> Response:
        """The assistant's next message."""
        return await self._answered(asking.asked_chat(body, self._name(body)))

    async def completions(self, body: CompletionBody) -> Response:
        """The continuation of one prompt, or of many."""
        return await self._answered(asking.asked_completion(body, self._name(body)))

    async def responses(self, body: ResponsesBody) -> Response:
        """The next items of a conversation, as Codex asks for them."""
        asked = asking.asked_responses(body, self._name(body))
        try:
            return await self._answered(asked)
        except ApiError as error:
            if not body.stream or error.code != "context_length_exceeded":
                raise
            # Codex makes a conversation shorter where an event tells it to, and takes a status for the end.
            return StreamingResponse([*asked.beginning.opening(), asked.beginning.failure(error)], media_type="text/event-stream")

    async def messages(self, body: MessagesBody) -> Response:
        """The assistant's next message, as Claude Code asks for it."""
        return await self._answered(asking.asked_messages(body, self._name(body)), partial(error_body, path=MESSAGES))

    async def count_tokens(self, body: CountBody) -> Response:
        """How many tokens the prompt of a message has, its system message and tools counted."""
        chat = messages_body.chat_of(body)
        told = partial(error_body, path=MESSAGES)
        return await self._worked_out(body.model, lambda llm: {"input_tokens": len(asking.message_prompt(llm, chat).ids)}, told)

    def _name(self, body: Any) -> str:
        """The name of the model that `body` asks for. Raises ApiError (404)."""
        return self.models_served.place(body.model).name

    async def _answered(self, asked: asking.AskedBody, told: Callable[[ApiError], dict[str, Any]] = ApiError.body) -> Response:
        headers = ignored_header(asked.ignored)
        pending = PendingAnswer(self.models_served, asked)
        await pending.begun()
        if asked.body.stream:
            return EventStream(pending.events(), headers, pending.end)
        return PatientJson(pending.whole, headers, pending.end, self.settings.keep_alive, told)

    async def _worked_out(
        self, name: str | None, work: Callable[[Any], dict[str, Any]], told: Callable[[ApiError], dict[str, Any]] = ApiError.body
    ) -> Response:
        """What `work` makes of the model called `name`, once that is loaded."""
        self.models_served.place(name)

        async def found() -> dict[str, Any]:
            lease = await self.models_served.lease(name)
            try:
                return await asyncio.to_thread(work, lease.served.llm)
            except UnderstudyError as error:
                raise answer_to(error) from None
            finally:
                lease.release()

        return PatientJson(found, {}, lambda: None, self.settings.keep_alive, told)

    async def models(self) -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [self._card(name) for name in self.models_served.places]}

    async def model(self, name: str) -> dict[str, Any]:
        """The model called `name`."""
        return self._card(name)

    def _card(self, name: str) -> dict[str, Any]:
        place = self.models_served.place(name)
        return {
            "id": place.name,
            "object": "model",
            "created": self.models_served.began,
            "owned_by": "understudy",
            "max_model_len": self.models_served.context(place),
            "exact": self.models_served.exact(place),
            "status": {"value": place.status},
        }

    async def tokenize(self, body: TokenizeBody) -> Response:
        """Text, or a conversation, to token ids."""
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "Give either prompt or messages.", param="prompt")
        return await self._worked_out(body.model, partial(tokens.encoded, body))

    async def detokenize(self, body: DetokenizeBody) -> Response:
        """Token ids to text."""
        return await self._worked_out(body.model, partial(tokens.decoded, body))

    async def tokenizer_info(self, model: str | None = None) -> Response:
        """What a client needs to know of the tokenizer of `model`."""
        return await self._worked_out(model, tokens.facts)

    async def health(self) -> Response:
        """200 as long as requests are served."""
        trouble = self.models_served.trouble
        return JSONResponse({"status": trouble or "ok"}, 503 if trouble else 200)

    async def version(self) -> dict[str, str]:
        """The version of the server."""
        return {"version": __version__}

    async def state(self, model: str | None = None) -> dict[str, Any]:
        """What lies where by the plan, and what the engine is at: of `model`, or of what is loaded in its place."""
        return {**state_of(self.models_served.shown(model)), "replica": self.replica}

    async def metrics_text(self) -> Response:
        """Figures for Prometheus."""
        text = self.models_served.metrics.text() if self.figures is None else await self.figures()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _tell_errors(app: FastAPI) -> None:
    """Every error is answered in the form that clients know."""

    async def unreadable(request: Request, error: Any) -> Response:
        return error_response(invalid(error.errors()), request.url.path)

    async def unknown(request: Request, error: Any) -> Response:
        # What a body is read with says no more than this where its bytes are no text.
        what = "The body is not JSON in UTF-8." if str(error.detail) == UNPARSED else str(error.detail)
        told = ApiError(error.status_code, what, headers=error.headers or {})
        return error_response(told, request.url.path)

    async def failed(request: Request, error: Exception) -> Response:
        return error_response(answer_to(error), request.url.path)

    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(HTTPException, unknown)
    for kind in (ApiError, UnderstudyError, Exception):
        app.add_exception_handler(kind, failed)
