"""How /v1/chat/completions writes its choices: reasoning, content and calls each in their own field."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..replies.calls import ToolCall
from ..token_texts import TokenTexts
from .forms import Chunked, Said
from .told_logprobs import entries


@dataclass
class ChatForm(Chunked):
    """/v1/chat/completions."""

    texts: TokenTexts
    prefix = "chatcmpl"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Calls of each choice so far.
        self._calls = [0] * len(self.requests)

    def begin(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""}, None)

    def pieces(self, index: int, said: Said) -> Iterator[dict[str, Any]]:
        logprobs = self._logprobs(said)
        for piece in said.pieces:
            if piece.call is not None:
                call = {"index": self._calls[index], **written(piece.call)}
                self._calls[index] += 1
                delta: dict[str, Any] = {"tool_calls": [call]}
            elif piece.kind == "reasoning":
                delta = thought(piece.text)
            else:
                delta = {"content": piece.text}
            yield self._delta(index, delta, logprobs)
            logprobs = None
        # Tokens without a text of their own have log-probabilities and ids all the same.
        if not said.pieces and (self.body.return_token_ids or self.body.return_drafting or said.logprobs):
            yield self._delta(index, {"content": ""}, logprobs)

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}

    def choice(self, index: int, said: Said) -> dict[str, Any]:
        content, reasoning = said.joined("content"), said.joined("reasoning")
        calls = [written(piece.call) for piece in said.pieces if piece.call is not None]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not content else content, "refusal": None}
        message |= thought(reasoning) if reasoning else {}
        message |= {"tool_calls": calls} if calls else {}
        return {"index": index, "message": message, "logprobs": self._logprobs(said), "finish_reason": said.reason}

    def _delta(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _logprobs(self, said: Said) -> dict[str, Any] | None:
        if said.logprobs is None:
            return None
        return {"content": entries(self.texts, said.logprobs), "refusal": None}


def thought(text: str) -> dict[str, str]:
    """Reasoning under both names that clients read."""
    return {"reasoning_content": text, "reasoning": text}


def written(call: ToolCall) -> dict[str, Any]:
    """A call as chat completions write it, with an id of its own."""
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": asdict(call)}
