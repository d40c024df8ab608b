"""How /v1/responses writes an answer: items, and events in the order that Codex needs.

An item is added before its text comes, and told whole when it is done. While nothing comes, `response.in_progress` is sent again:
Codex counts events, and comments are none."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...replies.calls import ToolCall
from ...replies.splitter import ReplySplitter
from ..errors import ApiError
from ..forms import Parted, Said, event
from ..told_logprobs import SpokenLogprobs
from .body import ResponsesBody
from .tools import ToolTable

ENCRYPTED = "reasoning.encrypted_content"


@dataclass
class ResponsesForm(Parted):
    """/v1/responses: one answer."""

    body: ResponsesBody
    tools: ToolTable
    model: str
    splitters: Sequence[ReplySplitter | None]
    # Items that are done.
    output: list[dict[str, Any]] = field(default_factory=list)
    # Which log-probabilities belong to a message; None before there is a request.
    spoken: SpokenLogprobs | None = None

    kinds: ClassVar[Mapping[str, str]] = {"reasoning": "reasoning", "content": "message"}

    def __post_init__(self) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._events = 0
        # The item whose text is under way, and that text.
        self._item: dict[str, Any] | None = None
        self._text = ""
        # The log-probabilities of its tokens, where they were asked for.
        self._logprobs: list[dict[str, Any]] = []

    def piece(self, index: int, said: Said) -> Iterator[str]:
        if self.spoken is not None:
            self.spoken.add(said)
        yield from super().piece(index, said)

    def opening(self) -> Iterator[str]:
        # A stream that waited for its model has begun already.
        if self._events:
            return
        yield self._event("response.created", response=self._response("in_progress"))
        yield self.alive()

    def alive(self) -> str:
        return self._event("response.in_progress", response=self._response("in_progress"))

    def failure(self, error: ApiError) -> str:
        response = self._response("failed", error={"code": error.code or "server_error", "message": error.message})
        return self._event("response.failed", response=response)

    def closing(self, figures: Mapping[str, Any]) -> Iterator[str]:
        yield from self._close()
        response = self._ended(figures)
        yield self._event(f"response.{response['status']}", response=response)

    def whole(self, said: Sequence[Said], figures: Mapping[str, Any]) -> dict[str, Any]:
        self._tell(said)
        return self._ended(figures)

    def _told(self, kind: str, text: str) -> Iterator[str]:
        """The events that go on with a text."""
        if self._item is None or self._item["type"] != kind:
            yield from self._close()
            yield from self._open(kind)
        self._text += text
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        more: dict[str, Any] = {}
        if kind == "message":
            more["logprobs"] = [] if self.spoken is None else self.spoken.of(text)
            self._logprobs += more["logprobs"]
        yield self._event(name, **self._place(), content_index=0, delta=text, **more)

    def _open(self, kind: str) -> Iterator[str]:
        if kind == "message":
            id = f"msg_{uuid.uuid4().hex}"
            self._item = {"type": "message", "id": id, "role": "assistant", "status": "in_progress", "content": []}
        else:
            self._item = {"type": "reasoning", "id": f"rs_{uuid.uuid4().hex}", "summary": [], "content": []}
        self._text = ""
        self._logprobs = []
        yield self._event("response.output_item.added", output_index=len(self.output), item=self._item)
        yield self._event("response.content_part.added", **self._place(), content_index=0, part=self._part(""))

    def _close(self) -> Iterator[str]:
        """The events that end the text under way, if there is one."""
        if self._item is None:
            return
        kind, text = self._item["type"], self._text
        name = "response.output_text.done" if kind == "message" else "response.reasoning_text.done"
        more: dict[str, Any] = {"logprobs": self._logprobs} if kind == "message" else {}
        yield self._event(name, **self._place(), content_index=0, text=text, **more)
        yield self._event("response.content_part.done", **self._place(), content_index=0, part=self._part(text))
        done = {**self._item, "content": [self._part(text)]}
        if kind == "message":
            done["status"] = "completed"
        elif ENCRYPTED in (self.body.include or ()):
            # A client that sends reasoning back sends this; it is no secret to whoever asked.
            done["encrypted_content"] = base64.b64encode(text.encode()).decode()
        yield from self._done(done)
        self._item = None

    def _called(self, call: ToolCall) -> Iterator[str]:
        item = self.tools.item(call, f"call_{uuid.uuid4().hex[:24]}")
        custom = item["type"] == "custom_tool_call"
        key, name = ("input", "custom_tool_call_input") if custom else ("arguments", "function_call_arguments")
        place = {"output_index": len(self.output), "item_id": item["id"]}
        added = {**item, "status": "in_progress", key: ""}
        yield self._event("response.output_item.added", output_index=len(self.output), item=added)
        yield self._event(f"response.{name}.delta", **place, delta=item[key])
        more = {} if custom else {"name": item["name"]}
        yield self._event(f"response.{name}.done", **place, **more, **{key: item[key]})
        yield from self._done(item)

    def _done(self, item: dict[str, Any]) -> Iterator[str]:
        yield self._event("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)

    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"output_index": len(self.output), "item_id": self._item["id"]}

    def _part(self, text: str) -> dict[str, Any]:
        if self._item is not None and self._item["type"] == "message":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self._logprobs]}
        return {"type": "reasoning_text", "text": text}

    def _ended(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as it ended."""
        whole = self.reason != "length"
        details = None if whole else {"reason": "max_output_tokens"}
        own = {name: value for name, value in figures.items() if name != "usage"}
        response = self._response("completed" if whole else "incomplete", usage=_usage(figures["usage"]), **own)
        return {**response, "incomplete_details": details, "completed_at": int(time.time()) if whole else None}

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        own = {"id": self.id, "object": "response", "created_at": self.created, "status": status, "model": self.model}
        empty = {"error": None, "incomplete_details": None, "usage": None, "completed_at": None}
        return {**own, **empty, "output": [*self.output], **self.body.told(), **more}

    def _event(self, kind: str, **content: Any) -> str:
        self._events += 1
        return event({"type": kind, "sequence_number": self._events - 1, **content}, kind)


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"], "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
        "total_tokens": usage["total_tokens"],
    }
