"""How /v1/completions writes its choices, log-probabilities in the old form included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..token_texts import TokenTexts
from .forms import LEAST, Chunked, Said


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


@dataclass
class TextForm(Chunked):
    """/v1/completions. `echoes`: the text that each choice begins with, its prompt or nothing."""

    echoes: Sequence[str]
    # For each choice.
    logprobs: Sequence[OldLogprobs]
    # Are log-probabilities of the prompt told? They and its text come with the first piece then.
    scored: bool = False
    prefix = "cmpl"
    kind = "text_completion"
    chunk_kind = "text_completion"

    def begin(self, index: int) -> dict[str, Any] | None:
        if not self.echoes[index] or self.scored:
            return None
        return self._choice(index, self.echoes[index], None, None)

    def pieces(self, index: int, said: Said) -> Iterator[dict[str, Any]]:
        asked = self.body.return_token_ids or self.body.return_drafting
        if said.text or asked or said.logprobs or said.prompt_logprobs is not None:
            echo = self.echoes[index] if said.prompt_logprobs is not None else ""
            yield self._choice(index, echo + said.text, self.logprobs[index].told(said), None)

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return self._choice(index, "", None, reason)

    def choice(self, index: int, said: Said) -> dict[str, Any]:
        return self._choice(index, self.echoes[index] + said.text, self.logprobs[index].told(said), said.reason)

    def _choice(self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
