"""Bodies of /v1/responses, and the chat that each of them asks for. Nothing is stored: a conversation is sent whole."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr

from ..errors import ApiError
from ..protocol import ChatBody, Number
from ..turns import Turns, chat_body, limited, own_names, passed_on
from .tools import ToolTable, made_call

WHOLE = "nothing is stored here: send the whole conversation as input"
# Fields of an answer that is not given at once, or goes on with one that was stored.
STORED: Mapping[str, str] = {
    "previous_response_id": WHOLE,
    "conversation": WHOLE,
    "prompt": "send its text as instructions",
    "background": "leave it out",
}
# Fields of chat completions by other names.
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "thinking_token_budget": "reasoning.max_tokens",
}
# What `include` names where log-probabilities are wanted.
LOGPROBS = "message.output_text.logprobs"
OUTPUTS = ("function_call_output", "custom_tool_call_output")
TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")


class ResponsesBody(BaseModel):
    """The body of /v1/responses. Fields of chat completions that are not named here are taken too."""

    model_config = ConfigDict(extra="allow")
    model: StrictStr | None = None
    input: StrictStr | list[dict[str, Any]]
    instructions: StrictStr | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    max_output_tokens: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    include: list[StrictStr] | None = None
    top_logprobs: StrictInt | None = None
    stream: StrictBool | None = None
    store: StrictBool | None = None
    metadata: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """What an answer repeats of it."""
        names = ("instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs")
        return {
            **{name: getattr(self, name) for name in names},
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(self.reasoning or {})},
            "store": False,
            "text": self.text or {"format": {"type": "text"}},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "truncation": "disabled",
        }


@dataclass(frozen=True)
class ResponsesChat:
    """The chat that a body asks for."""

    body: ChatBody
    tools: ToolTable
    # Fields, items and tools that were left out.
    ignored: list[str]


def chat_of(body: ResponsesBody) -> ResponsesChat:
    """The chat of a body. Raises ApiError (400) for what is not supported."""
    extra = body.model_extra or {}
    for name, advice in STORED.items():
        if extra.get(name):
            raise ApiError(400, f"{name} is not supported: {advice}.", param=name, code="unsupported_parameter")
    _check_told(body)
    table = ToolTable()
    table.add(body.tools or ())
    turns, skipped = _turns(body, table)
    fields = {
        "model": body.model,
        "messages": turns.messages,
        "tools": table.functions or None,
        "tool_choice": table.choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
        "reasoning_effort": (body.reasoning or {}).get("effort"),
        "response_format": _response_format(body.text or {}),
        "logprobs": True if body.top_logprobs or LOGPROBS in (body.include or ()) else None,
        "top_logprobs": body.top_logprobs,
        **limited((body.reasoning or {}).get("max_tokens")),
    }
    taken, ignored = passed_on(extra, {"messages", *fields})
    kinds = [f"input.{kind}" for kind in skipped] + [f"tools.{kind}" for kind in table.skipped]
    with own_names(NAMES):
        chat = chat_body({**taken, **fields})
    return ResponsesChat(chat, table, sorted({*ignored, *kinds}))


def _check_told(body: ResponsesBody) -> None:
    """Raise ApiError (400) for a field that no answer could repeat: Python reads what is no JSON, such as NaN."""
    for name, value in body.told().items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            why = "it holds half of a character"
        except ValueError:
            why = "it holds a number that JSON does not know"
        except RecursionError:
            why = "it is nested too deep"
        else:
            continue
        raise ApiError(400, f"{name} cannot be repeated in the answer: {why}.", param=name)


def _turns(body: ResponsesBody, table: ToolTable) -> tuple[Turns, list[str]]:
    """The conversation, and the types of items that were left out."""
    turns = Turns()
    skipped: list[str] = []
    if body.instructions:
        turns.say("system", body.instructions)
    if isinstance(body.input, str):
        turns.say("user", body.input)
        return turns, skipped
    for item in body.input:
        kind = item.get("type", "message")
        if kind == "message":
            turns.say(_role(item), _text(item.get("content"), "input"))
        elif kind == "reasoning":
            turns.think(_thought(item))
        elif kind in ("function_call", "custom_tool_call"):
            turns.call(made_call(item))
        elif kind in OUTPUTS:
            turns.answer(item.get("call_id"), _text(item.get("output"), "input"))
        elif kind == "additional_tools":
            table.add(item.get("tools") or ())
        elif kind == "item_reference":
            raise ApiError(400, f"input: an item_reference is not supported: {WHOLE}.", param="input")
        else:
            skipped.append(str(kind)[:40])
    return turns, skipped


def _role(item: Mapping[str, Any]) -> str:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise ApiError(400, f"input: a message needs a role, user, assistant, system or developer, got {role!r}.", param="input")
    return str(role)


def _text(content: Any, param: str) -> str:
    """The text of a content, or of the output of a call. Raises ApiError (400) for what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise ApiError(400, f"{param}: a content is a text or a list of parts, got {repr(content)[:80]}.", param=param)
    found = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind in TEXTS else None
        if not isinstance(text, str):
            raise ApiError(400, f"{param}: this model takes text only, got a part of type {kind!r}.", param=param)
        found.append(text)
    return "".join(found)


def _thought(item: Mapping[str, Any]) -> str:
    """What an earlier answer thought: its text, or what this server gave out as its encrypted form, or its summary."""
    if item.get("content"):
        return _text(item["content"], "input")
    try:
        own = base64.b64decode(str(item.get("encrypted_content") or ""), validate=True).decode()
    except (binascii.Error, ValueError):
        # Another server's, which only that one can read.
        own = ""
    return own or _text(item.get("summary"), "input")


def _response_format(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """`text.format` as chat completions have it."""
    form = text.get("format")
    if not isinstance(form, Mapping) or form.get("type") == "text":
        return None
    if form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
    return {"type": str(form.get("type"))}
