"""How /v1/messages writes an answer: blocks of thinking, text and uses of tools, and events that begin, go on and end with each."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...replies.calls import ToolCall
from ...replies.splitter import ReplySplitter
from ...request import Request
from ..errors import ApiError, error_body
from ..forms import Parted, Said, event

PATH = "/v1/messages"
# What a stop is called where no text of the request ended the reply.
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# For each kind of text: its key, and what a delta of it is.
DELTAS = {"text": "text_delta", "thinking": "thinking_delta"}


@dataclass
class MessagesForm(Parted):
    """/v1/messages: one answer. `stops`: texts of the request that end a reply."""

    request: Request
    model: str
    splitters: Sequence[ReplySplitter | None]
    stops: Sequence[str]
    kinds: ClassVar[Mapping[str, str]] = {"reasoning": "thinking", "content": "text"}

    def __post_init__(self) -> None:
        self.id = f"msg_{uuid.uuid4().hex}"
        self.blocks: list[dict[str, Any]] = []
        # Is the last block a text that may go on?
        self._open = False

    def opening(self) -> Iterator[str]:
        # How much of the prompt need not be read is known at the end.
        usage = {**self._usage(0, self.request.sequence.prompt_length), "output_tokens": 0}
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield self._event("message_start", message={**self._message(), **empty})
        yield self.alive()

    def alive(self) -> str:
        return self._event("ping")

    def failure(self, error: ApiError) -> str:
        return event(error_body(error, PATH), "error")

    def closing(self, figures: Mapping[str, Any]) -> Iterator[str]:
        yield from self._close()
        yield self._event("message_delta", delta=self._stop(), usage=self._used(figures))
        yield self._event("message_stop")

    def whole(self, said: Sequence[Said], figures: Mapping[str, Any]) -> dict[str, Any]:
        self._tell(said)
        return {**self._message(), "content": self.blocks, **self._stop(), "usage": self._used(figures)}

    def _told(self, kind: str, text: str) -> Iterator[str]:
        """The events that go on with a text."""
        if not self._open or self.blocks[-1]["type"] != kind:
            yield from self._close()
            block = {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}
            yield self._event("content_block_start", index=len(self.blocks), content_block=block)
            self.blocks.append(block)
            self._open = True
        self.blocks[-1] = {**self.blocks[-1], kind: self.blocks[-1][kind] + text}
        yield self._event("content_block_delta", index=len(self.blocks) - 1, delta={"type": DELTAS[kind], kind: text})

    def _close(self) -> Iterator[str]:
        """The events that end the text under way, if there is one."""
        if not self._open:
            return
        self._open = False
        place = len(self.blocks) - 1
        if self.blocks[-1]["type"] == "thinking":
            yield self._event("content_block_delta", index=place, delta={"type": "signature_delta", "signature": ""})
        yield self._event("content_block_stop", index=place)

    def _called(self, call: ToolCall) -> Iterator[str]:
        place = len(self.blocks)
        block = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": call.name, "input": {}}
        yield self._event("content_block_start", index=place, content_block=block)
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        yield self._event("content_block_delta", index=place, delta=delta)
        yield self._event("content_block_stop", index=place)
        self.blocks.append({**block, "input": json.loads(call.arguments)})

    def _stop(self) -> dict[str, Any]:
        stop = self.request.reply.stop if self.reason == "stop" else None
        if stop in self.stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        return {"stop_reason": REASONS[self.reason], "stop_sequence": None}

    def _message(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model}

    def _used(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        usage = figures["usage"]
        found = self._usage(usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"])
        return {**found, "output_tokens": usage["completion_tokens"]}

    @staticmethod
    def _usage(cached: int, prompt: int) -> dict[str, int]:
        """Tokens of the prompt, those apart that were not read again."""
        return {"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0}

    def _event(self, kind: str, **content: Any) -> str:
        return event({"type": kind, **content}, kind)
