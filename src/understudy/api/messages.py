"""Messages and tools as clients of chat completions write them, checked, and as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, StrictBool, StrictStr

from ..chat_template import part_text
from ..constraint import check_depth
from .errors import ApiError

# The parameters of a tool that has none.
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
USE_TOOLS = "use tools and tool_choice instead"


class CalledFunction(BaseModel):
    """Which tool was called; `arguments` is the JSON text of an object."""

    model_config = ConfigDict(extra="allow")
    name: StrictStr
    arguments: StrictStr = ""


class MadeCall(BaseModel):
    """A call that an earlier message of the assistant made."""

    model_config = ConfigDict(extra="allow")
    id: StrictStr
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow")
    role: StrictStr
    content: StrictStr | list[dict[str, Any]] | None = None
    name: StrictStr | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: StrictStr | None = None
    # Two names of what the assistant thought; servers write one or both.
    reasoning_content: StrictStr | None = None
    reasoning: StrictStr | None = None


class Function(BaseModel):
    """What a tool is called, what it does, and a JSON schema of its arguments."""

    model_config = ConfigDict(extra="allow")
    name: StrictStr
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="allow")
    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As a chat template takes it."""
        own = self.function
        told = {"name": own.name, "description": own.description or "", "parameters": own.parameters or dict(NO_PARAMETERS)}
        return {"type": "function", "function": told}


@dataclass(frozen=True)
class ToolUse:
    """Which tools a reply may call, as a chat template takes them, and how."""

    tools: Sequence[Mapping[str, Any]] = ()
    # Must one be called?
    required: bool = False
    # The most calls of one reply; None: any number.
    most_calls: int | None = None
    # The names of those whose arguments must fit their schemas, wherever a call comes from.
    strict: frozenset[str] = frozenset()


def tool_use(tools: Sequence[Tool] | None, choice: Any, parallel: bool | None) -> ToolUse:
    """What `tools`, `tool_choice` and `parallel_tool_calls` of a body come to. Raises ApiError (400)."""
    told = [tool.plain() for tool in tools or ()]
    strict = frozenset(tool.function.name for tool in tools or () if tool.function.strict)
    names = [tool["function"]["name"] for tool in told]
    for place, name in enumerate(names):
        if not name or name in names[:place]:
            what = "is empty" if not name else f"{name!r} stands twice"
            raise ApiError(400, f"tools.{place}.function.name {what}.", param="tools")
    mode, chosen = _chosen(choice)
    if unknown := [name for name in chosen or () if name not in names]:
        raise ApiError(400, f"tool_choice names {unknown[0]!r}, which is not among the tools.", param="tool_choice")
    if mode == "required" and not told:
        raise ApiError(400, "tool_choice needs tools.", param="tool_choice")
    if mode == "none":
        return ToolUse()
    kept = [tool for tool, name in zip(told, names, strict=True) if chosen is None or name in chosen]
    held = strict.intersection(tool["function"]["name"] for tool in kept)
    return ToolUse(kept, mode == "required", 1 if parallel is False else None, held)


def _chosen(choice: Any) -> tuple[str, list[str] | None]:
    """The mode (auto, none or required) of a tool_choice, and the names of the tools that it is limited to; None: all of them."""
    if choice is None:
        return "auto", None
    if choice in ("auto", "none", "required"):
        return str(choice), None
    try:
        if choice["type"] == "function":
            return "required", [str(choice["function"]["name"])]
        if choice["type"] == "allowed_tools":
            allowed = choice["allowed_tools"]
            if allowed["mode"] in ("auto", "required"):
                return allowed["mode"], [str(tool["function"]["name"]) for tool in allowed["tools"]]
    except (KeyError, TypeError):
        pass
    what = 'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}'
    raise ApiError(400, f"{what}, got {repr(choice)[:80]}.", param="tool_choice")


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as a chat template takes them. ApiError (400) for what is no text, and for results of calls never made."""
    if not messages:
        raise ApiError(400, "messages: a conversation has one message at least.", param="messages")
    found: list[dict[str, Any]] = []
    # The names of the tools that were called, by the ids of the calls.
    called: dict[str, str] = {}
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        if message.role == "function" or (message.model_extra or {}).get("function_call"):
            raise ApiError(400, f"{where}: function calls of the old kind are not supported: {USE_TOOLS}.", param="messages")
        plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": _content(message)}
        if message.name is not None:
            plain["name"] = message.name
        if thought := message.reasoning_content or message.reasoning:
            # Each template has its own name for it.
            plain |= {"reasoning_content": thought, "reasoning": thought, "thinking": thought}
        if message.tool_calls:
            if message.role != "assistant":
                raise ApiError(400, f"{where}: only the assistant makes tool_calls, not {message.role!r}.", param="messages")
            plain["tool_calls"] = [_call(call, f"{where}.tool_calls.{index}") for index, call in enumerate(message.tool_calls)]
            called |= {call.id: call.function.name for call in message.tool_calls}
        if message.role == "tool":
            id = message.tool_call_id
            if id is None or id not in called:
                what = "has no tool_call_id" if id is None else f"answers {id!r}, a call that no message before it makes"
                raise ApiError(400, f"{where}: a message of a tool {what}.", param="messages")
            plain |= {"tool_call_id": id, "name": message.name or called[id]}
        found.append(plain)
    return found


def _content(message: Message) -> str:
    """The text of a message. ApiError (400) for content that is not text."""
    if isinstance(message.content, list):
        return "".join(text_of(part) for part in message.content)
    return message.content or ""


def _call(call: MadeCall, where: str) -> dict[str, Any]:
    """A call as a chat template takes it: with its arguments as an object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where}.function.arguments is not the JSON text of an object.", param="messages")
    check_depth(arguments, f"{where}.function.arguments")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def text_of(part: Mapping[str, Any]) -> str:
    """The text of one part of a message's content."""
    text = part_text(part)
    if text is None:
        raise ApiError(400, f"This model takes text only, got a part of type {part.get('type')!r}.", param="messages")
    return text
