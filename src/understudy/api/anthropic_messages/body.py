"""Bodies of /v1/messages and /v1/messages/count_tokens, and the chat that each of them asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr

from ..errors import ApiError
from ..protocol import ChatBody, Number
from ..turns import Turns, chat_body, limited, own_names, passed_on

# Fields of chat completions by other names.
NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
}
# How a block of the system message begins that Claude Code changes with each request: no prefix of a conversation could be reused.
BILLING = "x-anthropic-billing-header"
# Fields of what is done elsewhere: tools that a server runs, files that it keeps.
ELSEWHERE = ("mcp_servers", "container")
# Blocks of messages that tell of such tools, or that nobody but their server can read.
SKIPPED_BLOCKS = ("redacted_thinking", "server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "container_upload")


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow")
    role: Literal["user", "assistant", "system"]
    content: StrictStr | list[dict[str, Any]]


class CountBody(BaseModel):
    """The body of /v1/messages/count_tokens: a conversation. Fields of chat completions that are not named here are taken too."""

    model_config = ConfigDict(extra="allow")
    model: StrictStr | None = None
    messages: list[Turn]
    system: StrictStr | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None


class MessagesBody(CountBody):
    """The body of /v1/messages."""

    max_tokens: StrictInt
    stop_sequences: list[StrictStr] | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    stream: StrictBool | None = None


@dataclass(frozen=True)
class MessagesChat:
    """The chat that a body asks for."""

    body: ChatBody
    # Fields, blocks and tools that were left out.
    ignored: list[str]


def chat_of(body: CountBody) -> MessagesChat:
    """The chat of a body. Raises ApiError (400) for what is not supported."""
    extra = body.model_extra or {}
    for name in ELSEWHERE:
        if extra.get(name):
            raise ApiError(400, f"{name} is not supported: leave it out.", param=name, code="unsupported_parameter")
    turns, skipped = _turns(body)
    tools, left_out = _tools(body.tools or ())
    choice, parallel = _choice(body.tool_choice)
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": turns.messages,
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "reasoning_effort": _effort(body),
        "response_format": _response_format(body),
        **_begun(turns, extra),
        **limited(_budget(body.thinking or {})),
    }
    if isinstance(body, MessagesBody):
        names = ("max_tokens", "temperature", "top_p", "top_k", "stream")
        fields |= {name: getattr(body, name) for name in names} | {"stop": body.stop_sequences or None}
    taken, ignored = passed_on(extra, {"messages", "stop", *fields})
    kinds = [f"messages.{kind}" for kind in skipped] + [f"tools.{kind}" for kind in left_out]
    with own_names(NAMES):
        return MessagesChat(chat_body({**taken, **fields}), sorted({*ignored, *kinds}))


def _turns(body: CountBody) -> tuple[Turns, list[str]]:
    """The conversation, and the types of blocks that were left out."""
    turns = Turns()
    skipped: list[str] = []
    system = [body.system] if isinstance(body.system, str) else [_text(block, "system") for block in body.system or ()]
    for text in system:
        if not text.startswith(BILLING):
            turns.say("system", text)
    for place, message in enumerate(body.messages):
        content = message.content
        if isinstance(content, str):
            turns.say(message.role, content)
            continue
        for index, block in enumerate(content):
            where = f"messages.{place}.content.{index}"
            if block.get("type") in SKIPPED_BLOCKS:
                skipped.append(block["type"])
            else:
                _add(turns, message.role, block, where)
    return turns, skipped


def _add(turns: Turns, role: str, block: Mapping[str, Any], where: str) -> None:
    """Go on with one block of a message."""
    kind = block.get("type")
    if kind == "thinking" and role == "assistant":
        turns.think(str(block.get("thinking") or ""))
    elif kind == "tool_use" and role == "assistant":
        id, name, given = block.get("id"), block.get("name"), block.get("input", {})
        if not isinstance(id, str) or not isinstance(name, str) or not isinstance(given, Mapping):
            raise ApiError(400, f"{where}: a tool_use needs an id, a name and an input, which is an object.", param="messages")
        turns.call({"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}})
    elif kind == "tool_result" and role == "user":
        content = block.get("content") or ""
        text = content if isinstance(content, str) else _texts(content, f"{where}.content")
        turns.answer(block.get("tool_use_id"), f"Error: {text}" if block.get("is_error") else text)
    else:
        turns.say(role, _text(block, where))


def _texts(blocks: Any, where: str) -> str:
    """The text of several blocks."""
    if not isinstance(blocks, Sequence):
        raise ApiError(400, f"{where}: a content is a text or a list of blocks, got {repr(blocks)[:80]}.", param="messages")
    return "\n".join(_text(block, f"{where}.{index}") for index, block in enumerate(blocks))


def _text(block: Any, where: str) -> str:
    """The text of one block. Raises ApiError (400) for what is no text."""
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind != "text" or not isinstance(block.get("text"), str):
        raise ApiError(400, f"{where}: this model takes text only, got a block of type {kind!r}.", param=where.partition(".")[0])
    return str(block["text"])


def _tools(tools: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The tools as functions, and the types of those that were left out: the server would have to run or to know them."""
    found, skipped = [], []
    for tool in tools:
        kind = tool.get("type")
        if kind in (None, "custom"):
            names = {"name": "name", "description": "description", "parameters": "input_schema", "strict": "strict"}
            found.append({"type": "function", "function": {own: tool.get(name) for own, name in names.items()}})
        else:
            skipped.append(str(kind)[:40])
    return found, skipped


def _choice(given: Mapping[str, Any] | None) -> tuple[Any, bool | None]:
    """`tool_choice` and `parallel_tool_calls` of chat completions. Raises ApiError (400)."""
    if given is None:
        return None, None
    kinds: dict[Any, Any] = {"auto": "auto", "none": "none", "any": "required"}
    kinds["tool"] = {"type": "function", "function": {"name": given.get("name")}}
    if given.get("type") not in list(kinds):
        raise ApiError(400, f"tool_choice must be of type auto, any, tool or none, got {repr(given)[:80]}.", param="tool_choice")
    return kinds[given["type"]], False if given.get("disable_parallel_tool_use") else None


def _begun(turns: Turns, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What goes on with a last message of the assistant that says something and calls nothing: it is the reply's beginning.

    Fields of chat completions in `extra` may say otherwise."""
    last = turns.messages[-1] if turns.messages else {}
    begun = last.get("role") == "assistant" and last["content"] and "tool_calls" not in last
    told = {"continue_final_message", "add_generation_prompt"}.intersection(extra)
    return {"continue_final_message": True} if begun and not told else {}


def _effort(body: CountBody) -> str | None:
    """`reasoning_effort` of chat completions."""
    effort = (body.output_config or {}).get("effort")
    kind = (body.thinking or {}).get("type")
    if kind not in (None, "enabled", "disabled", "adaptive"):
        raise ApiError(400, f"thinking must be of type enabled, disabled or adaptive, got {kind!r}.", param="thinking")
    if kind == "disabled":
        return "none"
    return effort or ("medium" if kind == "enabled" else None)


def _budget(thinking: Mapping[str, Any]) -> Any:
    """The most tokens of thinking, where it is switched on; None: any number."""
    return thinking.get("budget_tokens") if thinking.get("type") == "enabled" else None


def _response_format(body: CountBody) -> dict[str, Any] | None:
    """`output_config.format`, or `output_format` as it was called before, as chat completions have it."""
    form = (body.output_config or {}).get("format") or body.output_format
    if form is None:
        return None
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise ApiError(400, "output_config.format must be of type json_schema.", param="output_config.format")
    return {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
