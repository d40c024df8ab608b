"""Log-probabilities as OpenAI's endpoints write them, and which of them belong to which text of a reply."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from ..logprobs import TokenLogprob
from ..text import TextStream
from ..token_texts import TokenTexts
from .forms import LEAST, Said


def entries(texts: TokenTexts, found: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """An entry for each token, with the likeliest ones beside it."""
    return [
        {**_entry(texts, one.token, one.logprob), "top_logprobs": [_entry(texts, *pair) for pair in one.top]} for one in found
    ]


def _entry(texts: TokenTexts, token: int, logprob: float) -> dict[str, Any]:
    return {"token": texts.text(token), "logprob": max(logprob, LEAST), "bytes": list(texts.data(token))}


class SpokenLogprobs:
    """The log-probabilities of the tokens of one `reply`, text by text: those of marks, blanks and calls between are left out.

    A token belongs to the text in which it ends, however passes fell."""

    def __init__(self, reply: TextStream, texts: TokenTexts):
        self._reply = reply
        self._texts = texts
        # The text of the reply so far, and how much of it was told or passed over.
        self._text = ""
        self._at = 0
        # Tokens so far, and those of them that wait for their text: where each begins and ends in the reply.
        self._count = 0
        self._waiting: deque[tuple[int, int, TokenLogprob]] = deque()

    def add(self, said: Said) -> None:
        """Take in what a pass gave."""
        self._text += said.text
        ends = self._reply.ends
        for found in said.logprobs or ():
            # The token that ends a reply is none of its text.
            if self._count < len(ends):
                self._waiting.append((ends[self._count - 1] if self._count else 0, ends[self._count], found))
            self._count += 1

    def of(self, text: str) -> list[dict[str, Any]]:
        """The entries of the tokens of `text`, the next of the reply that is told."""
        start = max(self._text.find(text, self._at), self._at)
        self._at = start + len(text)
        found: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][1] <= self._at:
            begin, end, one = self._waiting.popleft()
            # A part of a character has no text of its own yet: it belongs to what follows.
            if end > start or begin == end == start:
                found.append(one)
        return entries(self._texts, found)
