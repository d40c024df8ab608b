"""Tools of the Responses API as functions of a chat, and calls of these as its items.

Custom tools take a text: they become functions with one argument. Namespaces, in which Codex sends the tools of MCP servers, are
unfolded: a function's name tells its namespace, and a call of it names both apart again. What a server would have to run itself
(`web_search` and others) is skipped, since Codex sends it always."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...replies.calls import ToolCall
from ..errors import ApiError

# The argument of a function that stands for a custom tool.
INPUT = "input"
# A namespace that says nothing: its tools are called by their own names.
NO_NAMESPACE = "functions"


@dataclass(frozen=True)
class KnownTool:
    """What a function of the chat is to the client."""

    name: str
    # None: it is in none.
    namespace: str | None = None
    custom: bool = False


@dataclass
class ToolTable:
    """The tools of one request by the names that the model is told, and what was skipped."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, KnownTool] = field(default_factory=dict)
    # Types of tools that were skipped.
    skipped: list[str] = field(default_factory=list)

    def add(self, tools: Any, namespace: str | None = None) -> None:
        """Take tools, a list, as the client sent them. Raises ApiError (400)."""
        for tool in _listed(tools, "tools"):
            kind = tool.get("type") if isinstance(tool, Mapping) else None
            if not isinstance(kind, str):
                raise ApiError(400, f"tools: a tool is an object with a type, got {repr(tool)[:80]}.", param="tools")
            if kind == "namespace":
                space = _name(tool)
                self.add(tool.get("tools"), None if space == NO_NAMESPACE else space)
            elif kind in ("function", "custom"):
                self._add_one(tool, namespace, kind == "custom")
            else:
                self.skipped.append(kind)

    def _add_one(self, tool: Mapping[str, Any], namespace: str | None, custom: bool) -> None:
        name = _name(tool)
        own = KnownTool(name, namespace, custom)
        told = self.told(own)
        self.known[told] = own
        function = {"name": told, "description": tool.get("description")}
        if custom:
            function |= {"description": _described(tool), "parameters": _one_text()}
        else:
            function |= {"parameters": tool.get("parameters"), "strict": tool.get("strict")}
        self.functions.append({"type": "function", "function": function})

    @staticmethod
    def told(tool: KnownTool) -> str:
        """The name that the model is told."""
        if tool.namespace is None:
            return tool.name
        return tool.namespace + ("" if tool.namespace.endswith("__") else "__") + tool.name

    def choice(self, given: Any) -> Any:
        """`tool_choice` as chat completions have it. Raises ApiError (400)."""
        if not isinstance(given, Mapping):
            return given
        if given.get("type") == "allowed_tools":
            tools = [self._chosen(tool) for tool in _listed(given.get("tools"), "tools")]
            return {"type": "allowed_tools", "allowed_tools": {"mode": given.get("mode", "auto"), "tools": tools}}
        return self._chosen(given)

    def _chosen(self, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping) or given.get("type") not in ("function", "custom"):
            what = f"tool_choice can only name a function or a custom tool, got {repr(given)[:80]}"
            raise ApiError(400, f"{what}.", param="tool_choice")
        name = self.told(KnownTool(_name(given, "tool_choice"), _namespace(given, "tool_choice")))
        return {"type": "function", "function": {"name": name}}

    def item(self, call: ToolCall, id: str) -> dict[str, Any]:
        """The item that a call is."""
        own = self.known.get(call.name, KnownTool(call.name))
        more = {} if own.namespace is None else {"namespace": own.namespace}
        item = {"call_id": id, "name": own.name, "status": "completed", **more}
        arguments = json.loads(call.arguments)
        if own.custom:
            text = arguments.get(INPUT, "")
            text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
            return {"type": "custom_tool_call", "id": f"ctc_{uuid.uuid4().hex}", "input": text, **item}
        return {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "arguments": call.arguments, **item}


def made_call(item: Mapping[str, Any]) -> dict[str, Any]:
    """A call of an earlier answer, as a message of chat completions has it. Raises ApiError (400)."""
    custom = item["type"] == "custom_tool_call"
    content = item.get("input" if custom else "arguments", "")
    id = item.get("call_id")
    if not isinstance(content, str) or not isinstance(id, str):
        raise ApiError(400, f"input: a {item['type']} needs call_id, name and its arguments as texts.", param="input")
    arguments = json.dumps({INPUT: content}, ensure_ascii=False) if custom else content
    known = KnownTool(_name(item, "input"), _namespace(item, "input"))
    return {"id": id, "type": "function", "function": {"name": ToolTable.told(known), "arguments": arguments}}


def _described(tool: Mapping[str, Any]) -> str:
    """The description of a custom tool, with the grammar of its input."""
    form = tool.get("format")
    texts = [tool.get("description")]
    if isinstance(form, Mapping) and isinstance(form.get("definition"), str):
        texts.append(f"The input must follow this {form.get('syntax', '')} grammar:\n{form['definition']}")
    return "\n\n".join(text for text in texts if isinstance(text, str))


def _one_text() -> dict[str, Any]:
    return {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}


def _name(tool: Mapping[str, Any], param: str = "tools") -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError(400, f"{param}: a tool of type {tool.get('type')!r} needs a name.", param=param)
    return name


def _namespace(given: Mapping[str, Any], param: str) -> str | None:
    """The namespace that a tool or a call is in; None: it is in none."""
    found = given.get("namespace")
    if found is not None and not isinstance(found, str):
        raise ApiError(400, f"{param}: a namespace is a text, got {repr(found)[:80]}.", param=param)
    return None if found == NO_NAMESPACE else found


def _listed(found: Any, key: str) -> Sequence[Any]:
    if not isinstance(found, (list, tuple)):
        raise ApiError(400, f"{key} must be a list, got {repr(found)[:80]}.", param="tools")
    return found
