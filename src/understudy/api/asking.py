"""Requests of both completion endpoints, made of bodies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import BaseModel

from ..chat_template import encode
from ..errors import RoomError
from ..params import SamplingParams
from ..replies.splitter import ReplySplitter
from ..request import Request
from ..sampling import derived_seed
from ..token_texts import TokenTexts
from .anthropic_messages.body import NAMES as MESSAGES_NAMES
from .anthropic_messages.body import MessagesBody, MessagesChat
from .anthropic_messages.body import chat_of as messages_chat
from .anthropic_messages.form import PATH as MESSAGES
from .anthropic_messages.form import MessagesForm
from .chat_form import ChatForm
from .conversation import ChatPrompt, conversation_of
from .errors import ApiError, answer_to, error_body
from .forms import Beginning, Form, Patience, event
from .openai_responses.body import NAMES as RESPONSES_NAMES
from .openai_responses.body import ResponsesBody, ResponsesChat
from .openai_responses.body import chat_of as responses_chat
from .openai_responses.form import ResponsesForm
from .protocol import ChatBody, CompletionBody, SamplingFields
from .settings import AnswerSettings
from .text_form import OldLogprobs, TextForm
from .told_logprobs import SpokenLogprobs
from .turns import own_names

# What makes the requests of a body, and the form of their answer, for a loaded model and its settings.
Make = Callable[[Any, AnswerSettings], tuple[list[Request], Form]]
# Tokens of a text completion where the request does not say: what the OpenAI API takes.
COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class AskedBody:
    """What one body asks for."""

    # Its fields as those of a completion.
    body: SamplingFields
    # Fields that are ignored.
    ignored: list[str]
    make: Make
    # What a stream says while the model is loaded.
    beginning: Beginning = field(default_factory=Patience)


def check_model(name: str | None, settings: AnswerSettings) -> None:
    """Raise ApiError (404) for a model that is another one; no name is this one's."""
    if name not in (None, "", settings.model_name):
        raise no_model(str(name), [settings.model_name])


def no_model(name: str, known: Sequence[str]) -> ApiError:
    """The answer (404) to a request for a model that is none of those that are `known`."""
    here = f"only {known[0]!r} is" if len(known) == 1 else f"{', '.join(map(repr, known))} are"
    return ApiError(404, f"The model {name!r} is not here: {here}.", param="model", code="model_not_found")


def chat_requests(llm: Any, body: ChatBody, settings: AnswerSettings) -> tuple[list[Request], Form]:
    """The requests of a chat. Raises ApiError, UsageError and CheckpointError."""
    requests, splitters = _chat(llm, body, settings)
    return requests, ChatForm(body, requests, settings.model_name, splitters, TokenTexts(llm.tokenizer))


def responses_requests(llm: Any, form: ResponsesForm, chat: ResponsesChat, settings: AnswerSettings) -> tuple[list[Request], Form]:
    """The request of a body of /v1/responses, told in `form`. Raises ApiError, UsageError and CheckpointError."""
    with own_names(RESPONSES_NAMES):
        requests, form.splitters = _chat(llm, chat.body, settings)
    form.spoken = SpokenLogprobs(requests[0].reply, TokenTexts(llm.tokenizer))
    return requests, form


def messages_requests(llm: Any, body: MessagesBody, chat: MessagesChat, settings: AnswerSettings) -> tuple[list[Request], Form]:
    """The request of a body of /v1/messages. Raises ApiError, UsageError and CheckpointError."""
    with own_names(MESSAGES_NAMES):
        requests, splitters = _chat(llm, chat.body, settings)
    return requests, MessagesForm(requests[0], settings.model_name, splitters, body.stop_sequences or ())


def message_prompt(llm: Any, chat: MessagesChat) -> ChatPrompt:
    """The prompt of a body of /v1/messages. Raises ApiError and CheckpointError."""
    with own_names(MESSAGES_NAMES):
        chat.body.refuse_unsupported()
        return conversation_of(llm, chat.body)


def _chat(llm: Any, body: ChatBody, settings: AnswerSettings) -> tuple[list[Request], list[ReplySplitter | None]]:
    """The requests of a chat, and what splits the reply to each."""
    body.refuse_unsupported()
    conversation = conversation_of(llm, body)
    kept = () if conversation.form is None else conversation.form.kept(llm.tokenizer)
    requests = _requests(llm, [conversation.ids], body, settings, chat=True, kept=kept, held=conversation.held)
    return requests, [conversation.splitter() for _ in requests]


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
    splitters = [None] * len(requests)
    return requests, TextForm(body, requests, settings.model_name, splitters, echoes, logprobs, scored)


def _requests(
    llm: Any,
    prompts: Sequence[list[int]],
    body: SamplingFields,
    settings: AnswerSettings,
    *,
    chat: bool,
    kept: Collection[int] = (),
    held: Callable[[SamplingParams], SamplingParams] = lambda own: own,
) -> list[Request]:
    """`n` requests for each prompt, each with a seed of its own: the first has the seed that was asked for."""
    count = 1 if body.n is None else body.n
    if not 1 <= count <= settings.max_choices:
        raise ApiError(400, f"n must be from 1 to {settings.max_choices}, got {count}.", param="n")
    if not prompts:
        raise ApiError(400, "prompt is empty.", param="prompt")
    params = held(body.params(llm.context if chat else COMPLETION_TOKENS))
    text = "" if body.prediction is None else body.prediction.text()
    prediction = encode(llm.tokenizer, text, add_special_tokens=False) if text else []
    found = []
    for prompt in prompts:
        for index in range(count):
            own = replace(params, seed=derived_seed(params.seed, index)) if params.gives("seed") and index else params
            try:
                request = llm.request(list(prompt), own, chat=chat, stop_ids=body.stop_token_ids or (), kept=kept)
            except RoomError as error:
                raise replace(answer_to(error), param="messages" if chat else "prompt") from None
            request.sequence.prediction = prediction
            found.append(request)
    return found


def asked_chat(body: ChatBody, model: str) -> AskedBody:
    """What a body of /v1/chat/completions asks for."""
    return AskedBody(body, body.ignored(), lambda llm, own: chat_requests(llm, body, own))


def asked_completion(body: CompletionBody, model: str) -> AskedBody:
    """What a body of /v1/completions asks for."""
    return AskedBody(body, body.ignored(), lambda llm, own: completion_requests(llm, body, own))


def asked_responses(body: ResponsesBody, model: str) -> AskedBody:
    """What a body of /v1/responses asks for. Raises ApiError (400)."""
    chat = responses_chat(body)
    form = ResponsesForm(body, chat.tools, model, ())
    return AskedBody(chat.body, chat.ignored, lambda llm, own: responses_requests(llm, form, chat, own), form)


def asked_messages(body: MessagesBody, model: str) -> AskedBody:
    """What a body of /v1/messages asks for. Raises ApiError (400)."""
    chat = messages_chat(body)
    patience = Patience(event({"type": "ping"}, "ping"), partial(error_body, path=MESSAGES), "error")
    return AskedBody(chat.body, chat.ignored, lambda llm, own: messages_requests(llm, body, chat, own), patience)


# What a body is read as, and what it asks for by that and the model's name, for each path.
URLS: Mapping[str, tuple[type[BaseModel], Callable[[Any, str], AskedBody]]] = {
    "/v1/chat/completions": (ChatBody, asked_chat),
    "/v1/completions": (CompletionBody, asked_completion),
    "/v1/responses": (ResponsesBody, asked_responses),
    MESSAGES: (MessagesBody, asked_messages),
}
