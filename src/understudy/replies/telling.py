"""How a chat template is told of tools, of the calls in a conversation and of what came of them.

Templates that know tools read them as transformers gives them. Others, and models without a template, are told in words: tools in
the system message, as Hermes did, and calls and results within the texts of the conversation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .format import chat_template_text

Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]
# A template that reads a variable of this name.
VARIABLE = {name: re.compile(rf"(?<![\w.'\"\[]){name}\b(?!['\"])") for name in ("tools", "xml_tools")}
# One that reads the tools in its system message, as JSON.
IN_SYSTEM = {name: re.compile(rf"""(?:\[|\.get\()['"]{name}['"]|message\.{name}\b""") for name in ("tools", "functions")}
# Mistral's templates take ids of this length alone.
SHORT_IDS = re.compile(r"length\s*!=\s*9")
SHORT = 9
# Templates in which results of calls are a part of the message that made them, and none of them has a role of its own.
RESPONSES, TOOL_ROLE = re.compile(r"\btool_responses\b"), re.compile(r"""role['"\]]*\s*==\s*['"]tool['"]""")
IN_WORDS = """You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def told(tokenizer: Any, messages: Sequence[Message], tools: Tools) -> tuple[list[Message], dict[str, Any]]:
    """The messages as the tokenizer's template takes them, and what else it is told, where `tools` may be called."""
    text = chat_template_text(tokenizer)
    known = _with_responses(messages) if RESPONSES.search(text) and not TOOL_ROLE.search(text) else [*messages]
    if SHORT_IDS.search(text):
        known = [_with_short_ids(message) for message in known]
    for name, pattern in VARIABLE.items():
        if pattern.search(text):
            return known, {name: [*tools]} if tools else {}
    for name, pattern in IN_SYSTEM.items():
        if pattern.search(text):
            return (_in_system(known, {name: json.dumps([*tools], ensure_ascii=False)}) if tools else known), {}
    known = [_in_words(message) for message in known]
    if tools:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        known = _in_system(known, {}, IN_WORDS.format(tools=lines))
    return known, {}


def _in_system(messages: Sequence[Message], more: Mapping[str, Any], words: str = "") -> list[Message]:
    """The messages with `more` in the system message, and `words` at its end. There is one afterwards."""
    system = messages[0] if messages and messages[0]["role"] == "system" else {"role": "system", "content": ""}
    rest = messages[1:] if messages and system is messages[0] else messages
    content = "\n\n".join(filter(None, (system["content"], words)))
    return [{**system, "content": content, **more}, *rest]


def _in_words(message: Message) -> Message:
    """The message with its calls, or the result that it is, in its content."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    texts = [message["content"], *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return rest | {"content": "\n".join(filter(None, texts))}


def _with_responses(messages: Sequence[Message]) -> list[Message]:
    """The messages with each result of a call in the message before it."""
    found: list[Message] = []
    for message in messages:
        if message["role"] == "tool" and found:
            response = {"name": message["name"], "response": message["content"]}
            found[-1] = {**found[-1], "tool_responses": [*found[-1].get("tool_responses", ()), response]}
        else:
            found.append(message)
    return found


def _with_short_ids(message: Message) -> Message:
    """The message with ids of calls that have nine letters and digits: the same for the same id."""
    found = dict(message)
    if "tool_calls" in message:
        found["tool_calls"] = [{**call, "id": _short(call["id"])} for call in message["tool_calls"]]
    if "tool_call_id" in message:
        found["tool_call_id"] = _short(message["tool_call_id"])
    return found


def _short(id: str) -> str:
    return id if len(id) == SHORT and id.isalnum() else hashlib.sha256(id.encode()).hexdigest()[:SHORT]
