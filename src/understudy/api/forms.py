"""How each endpoint writes a choice, its log-probabilities included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..logprobs import TokenLogprob
from ..token_texts import TokenTexts

# JSON has no infinity: the log-probability of what cannot be, as vLLM writes it.
LEAST = -9999.0


@dataclass
class Said:
    """What a choice says, or a piece of it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    # None while the choice goes on.
    reason: str | None = None
    # None where they were not asked for; those of the prompt come with the first piece.
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None

    def add(self, other: Said) -> None:
        """Go on with `other`."""
        self.text += other.text
        self.token_ids += other.token_ids
        self.reason = other.reason
        if other.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *other.logprobs]
        if other.prompt_logprobs is not None:
            self.prompt_logprobs = other.prompt_logprobs


class Form(Protocol):
    """How one endpoint writes its objects."""

    @property
    def prefix(self) -> str:
        """What ids begin with."""

    @property
    def whole(self) -> str:
        """What kind of object a whole answer is."""

    @property
    def chunk(self) -> str:
        """What kind of object a piece of a stream is."""

    def begin(self, index: int) -> dict[str, Any] | None:
        """The first choice of a stream, before any text; None: there is none."""

    def piece(self, index: int, said: Said) -> dict[str, Any]:
        """The choice of a chunk; the pieces of a choice come in order."""

    def end(self, index: int, reason: str) -> dict[str, Any]:
        """The choice of a chunk that says why the text ended."""

    def choice(self, index: int, said: Said) -> dict[str, Any]:
        """The choice of a whole answer."""


@dataclass(frozen=True)
class ChatForm:
    """/v1/chat/completions."""

    texts: TokenTexts
    prefix: str = "chatcmpl"
    whole: str = "chat.completion"
    chunk: str = "chat.completion.chunk"

    def begin(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, said: Said) -> dict[str, Any]:
        delta = {"content": said.text}
        return {"index": index, "delta": delta, "logprobs": self._logprobs(said), "finish_reason": None}

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}

    def choice(self, index: int, said: Said) -> dict[str, Any]:
        message = {"role": "assistant", "content": said.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(said), "finish_reason": said.reason}

    def _logprobs(self, said: Said) -> dict[str, Any] | None:
        if said.logprobs is None:
            return None
        content = [
            {**self._entry(found.token, found.logprob), "top_logprobs": [self._entry(*pair) for pair in found.top]}
            for found in said.logprobs
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text, data = self.texts.text(token), self.texts.data(token)
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(data)}


@dataclass
class OldLogprobs:
    """Log-probabilities of one choice of /v1/completions, piece by piece. Offsets are characters of the choice's text."""

    texts: TokenTexts
    # The prompt, and its text; empty where it is not a part of the choice.
    prompt: Sequence[int] = ()
    echo: str = ""
    # Characters before the next token.
    at: int = 0

    def told(self, said: Said) -> dict[str, Any] | None:
        """Those of one piece; None where it has none."""
        if said.logprobs is None and said.prompt_logprobs is None:
            return None
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if said.prompt_logprobs is not None:
            joined = b"".join(self.texts.data(token) for token in self.prompt).decode("utf-8", errors="replace")
            # A decoder may leave out a space at the beginning.
            self.at = len(self.echo) - len(joined) if joined.endswith(self.echo) else 0
            self._add(told, self.prompt[0], None, None)
            for found in said.prompt_logprobs:
                self._add(told, found.token, found.logprob, found.top)
            self.at = len(self.echo)
        for found in said.logprobs or ():
            self._add(told, found.token, found.logprob, found.top, hidden=found.token in self.texts.special)
        return told

    def _add(
        self,
        told: dict[str, list[Any]],
        token: int,
        logprob: float | None,
        top: Sequence[tuple[int, float]] | None,
        hidden: bool = False,
    ) -> None:
        data = self.texts.data(token)
        # Bytes that go on with a character do not begin one.
        goes_on = [byte & 0xC0 == 0x80 for byte in data]
        told["text_offset"].append(max(self.at - (bool(goes_on) and goes_on[0]), 0))
        told["tokens"].append(self.texts.name(token))
        told["token_logprobs"].append(logprob if logprob is None else max(logprob, LEAST))
        told["top_logprobs"].append(None if top is None or logprob is None else self._likeliest(token, logprob, top))
        self.at += 0 if hidden else len(goes_on) - sum(goes_on)

    def _likeliest(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """By text, the token itself too. Of two that read alike the likelier one."""
        likeliest: dict[str, float] = {}
        for other, value in (*top, (token, logprob)):
            likeliest.setdefault(self.texts.name(other), max(value, LEAST))
        return likeliest


@dataclass(frozen=True)
class TextForm:
    """/v1/completions. `echoes`: the text that each choice begins with, its prompt or nothing."""

    echoes: Sequence[str]
    # For each choice.
    logprobs: Sequence[OldLogprobs]
    # Are log-probabilities of the prompt told? They and its text come with the first piece then.
    scored: bool = False
    prefix: str = "cmpl"
    whole: str = "text_completion"
    chunk: str = "text_completion"

    def begin(self, index: int) -> dict[str, Any] | None:
        if not self.echoes[index] or self.scored:
            return None
        return self._choice(index, self.echoes[index], None, None)

    def piece(self, index: int, said: Said) -> dict[str, Any]:
        echo = self.echoes[index] if said.prompt_logprobs is not None else ""
        return self._choice(index, echo + said.text, self.logprobs[index].told(said), None)

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return self._choice(index, "", None, reason)

    def choice(self, index: int, said: Said) -> dict[str, Any]:
        return self._choice(index, self.echoes[index] + said.text, self.logprobs[index].told(said), said.reason)

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
