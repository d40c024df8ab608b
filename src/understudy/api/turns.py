"""Conversations of other APIs as messages of chat completions: what belongs to one turn there becomes one message."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from ..errors import UsageError
from .errors import ApiError, answer_to, invalid
from .protocol import REFUSED, ChatBody


class Turns:
    """Messages, one after another. Many chat templates want the system message first and alone, and turns that alternate."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        # What the assistant thought before its next message or call.
        self._thought = ""

    def say(self, role: str, text: str) -> None:
        """Go on with a text. What the system says in the middle is told in the user's turn."""
        if role in ("system", "developer"):
            role = "system" if not self.messages or self.messages[-1]["role"] == "system" else "user"
        last = self._last(role)
        last["content"] = "\n\n".join(filter(None, (last["content"], text)))

    def think(self, text: str) -> None:
        """What the assistant thought."""
        self._thought = "\n\n".join(filter(None, (self._thought, text)))

    def call(self, call: Mapping[str, Any]) -> None:
        """A call that the assistant made, in the message of its turn."""
        self._last("assistant").setdefault("tool_calls", []).append(call)

    def answer(self, id: Any, text: str) -> None:
        """What came of the call `id`."""
        self.messages.append({"role": "tool", "tool_call_id": id if isinstance(id, str) else None, "content": text})

    def _last(self, role: str) -> dict[str, Any]:
        """The message of `role` that is under way, or a new one."""
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": ""})
        if role == "assistant" and self._thought:
            last = self.messages[-1]
            last["reasoning_content"] = "\n\n".join(filter(None, (last.get("reasoning_content"), self._thought)))
        self._thought = ""
        return self.messages[-1]


# Fields of chat completions that the APIs of agents have no place for in their answers.
UNTOLD = frozenset(
    {"n", "max_tokens", "logprobs", "top_logprobs", "stream_options", "return_token_ids", "return_drafting"}
)


def passed_on(extra: Mapping[str, Any], own: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Fields of chat completions in `extra`, but for those that an API has its `own` words for, and the names of others."""
    known = ({*ChatBody.model_fields, *REFUSED}) - {*own, *UNTOLD}
    return {name: value for name, value in extra.items() if name in known}, sorted(set(extra) - known)


def limited(tokens: Any) -> dict[str, Any]:
    """The field of chat completions for the most `tokens` of reasoning; none where an API's own field does not say."""
    return {} if tokens is None else {"thinking_token_budget": tokens}


@contextmanager
def own_names(names: Mapping[str, str]) -> Iterator[None]:
    """Errors inside name fields as an API does: `names` by those of chat completions. What is raised is an ApiError."""
    try:
        yield
    except (ApiError, UsageError) as error:
        found = answer_to(error)
        name = names.get(found.param or "")
        if name is None:
            raise found from None
        rest = found.message.removeprefix(str(found.param))
        message = f"{name}{rest}" if rest != found.message else f"{name}: {found.message}"
        raise replace(found, message=message, param=name) from None


def chat_body(fields: Mapping[str, Any]) -> ChatBody:
    """The body of a chat. Raises ApiError (400) for values of a wrong type."""
    try:
        return ChatBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise invalid(error.errors()) from None
