"""Which response template reads the replies of a model: the tokenizer's own, or one of the families that its chat template shows.

A template is taken apart here: transformers' parser only says where the fields of a reply begin and end, so that a call which
cannot be read is text, and no error. Each call is then read alone, by the field as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import CheckpointError
from .calls import ToolCall, calls_of
from .families import AS_TEXT, FAMILIES, HERMES, REASONING, Family, Reasoning

# Every reply is read from its first character.
START = {"start_anchor_pattern": r"\A"}
# A group of a pattern that has a name.
GROUP = re.compile(r"\(\?P<\w+>")
REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class ReplyFormat:
    """How the replies of one request are read."""

    # The fields of a response template, by name.
    fields: Mapping[str, Any]
    # Where a reply begins in the prompt, as keys of a response template.
    anchor: Mapping[str, Any]
    # The tools of the request, as a chat template takes them; none: calls are text.
    tools: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def template(self) -> dict[str, Any]:
        """The response template that only says where fields begin and end. CheckpointError for fields that make no sense."""
        fields = {name: self._bounds(name, own) for name, own in self.fields.items()}
        return {**self.anchor, "fields": fields}

    @property
    def finds_start(self) -> bool:
        """Whether the template itself finds where a reply begins in a prompt."""
        return self.anchor != START

    @property
    def names(self) -> set[str]:
        """The names of the request's tools."""
        return {str(tool["function"]["name"]) for tool in self.tools}

    def kept(self, tokenizer: Any) -> frozenset[int]:
        """The special tokens that mark fields: a reply is read with them."""
        marks = "\n".join(_texts(self.fields)).replace("\\", "")
        added = tokenizer._tokenizer.get_added_tokens_decoder().items()
        return frozenset(id for id, token in added if token.special and token.content.replace("\\", "") in marks)

    def calls(self, name: str, opened: str, body: str) -> list[ToolCall] | None:
        """The calls in `body`, what stands in the field `name` after the mark `opened`; None where it is no call."""
        from transformers.utils.chat_parsing import parse_response

        field = {**self.fields[name], "repeats": False}
        field.pop("join", None)
        closed = field.get("close")
        text = opened + body + (closed if isinstance(closed, str) else "")
        tools: list[Any] = [{"function": dict(tool["function"])} for tool in self.tools]
        try:
            found = parse_response(text, {**START, "fields": {name: field}}, prefix="", tools=tools).get(name)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        calls = calls_of(found)
        if calls and name.startswith("bare_") and not {call.name for call in calls} <= self.names:
            return None
        return calls

    def _bounds(self, name: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """The field `own` without what is done to its text. The value of one with calls has the opening mark too."""
        if not isinstance(own, Mapping):
            raise CheckpointError(f"The response template of this model is faulty: its field {name} is no object.")
        found: dict[str, Any] = {key: own[key] for key in ("close", "close_pattern") if key in own}
        if "close_pattern" in found:
            found["close_pattern"] = GROUP.sub("(?:", found["close_pattern"])
        found |= {"content": "text", "content_args": AS_TEXT, "repeats": True}
        if not is_call(name):
            opening = {key: own[key] for key in ("open", "open_pattern") if key in own}
            return found | opening | ({"transform": "{content}"} if "open_pattern" in opening else {})
        literals = [own["open"]] if isinstance(own.get("open"), str) else own.get("open", [])
        pattern = own.get("open_pattern") or "|".join(re.escape(text) for text in sorted(literals, key=len, reverse=True))
        found["open_pattern"] = f"(?P<opened>{GROUP.sub('(?:', pattern)})"
        return {**found, "transform": {"opened": "{opened}", "body": "{content}"}}


def is_reasoning(name: str) -> bool:
    """Whether the field `name` holds reasoning."""
    return name in REASONING_NAMES


def is_call(name: str) -> bool:
    """Whether the field `name` holds calls of tools."""
    return name.endswith("tool_calls")


def format_of(tokenizer: Any, tools: Sequence[Mapping[str, Any]] = (), enforced: bool = False) -> ReplyFormat | None:
    """How replies are read where `tools` may be called; None: as plain text. CheckpointError for a faulty response template.

    enforced: must one be called, as a grammar has it? Then it is written as Hermes did."""
    own = getattr(tokenizer, "response_template", None)
    if own is not None and not enforced:
        if not isinstance(own, Mapping) or not isinstance(own.get("fields"), Mapping):
            raise CheckpointError("The response template of this model is faulty: it has no fields.")
        fields = {name: field for name, field in own["fields"].items() if tools or not is_call(name)}
        anchor = {key: own[key] for key in ("start_anchor", "start_anchor_pattern") if key in own}
        return ReplyFormat(fields, anchor or START, tools)
    reasoning = reasoning_of(tokenizer)
    fields = {} if reasoning is None else dict(reasoning.fields())
    if tools:
        fields |= (HERMES if enforced else family_of(tokenizer)).fields
    return ReplyFormat({**fields, "content": {"content_args": AS_TEXT}}, START, tools) if fields else None


def family_of(tokenizer: Any) -> Family:
    """How the model writes calls, by its chat template or its tokens; one that knows no tools is told to do it as Hermes did."""
    text, tokens = chat_template_text(tokenizer), _added(tokenizer)
    shown = (family for family in FAMILIES if all(mark in text for mark in family.marks))
    return next(shown, None) or next((family for family in FAMILIES if tokens.issuperset(family.marks)), HERMES)


def reasoning_of(tokenizer: Any) -> Reasoning | None:
    """How the model marks its reasoning, by its chat template or by its tokens; None: it does not."""
    text, tokens = chat_template_text(tokenizer), _added(tokenizer)
    shown = (one for one in REASONING if one.closed in text)
    return next(shown, None) or next((one for one in REASONING if {one.opened, one.closed} <= tokens), None)


def _added(tokenizer: Any) -> set[str]:
    """The tokens that were added to the tokenizer's vocabulary, special ones among them."""
    return {token.content for token in tokenizer._tokenizer.get_added_tokens_decoder().values()}


def chat_template_text(tokenizer: Any) -> str:
    """The text of the tokenizer's chat template, or of all that it has; empty where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        return "\n".join(text for text in template.values() if isinstance(text, str))
    return template if isinstance(template, str) else ""


def _texts(value: Any) -> Iterator[str]:
    """All texts in `value`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
