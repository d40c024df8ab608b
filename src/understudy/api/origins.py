"""Where the text of a reply came from, token by token: guessed by a draft and accepted, or the exact model's own choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..request import Step
from ..text import TextStream


@dataclass(frozen=True)
class TokenOrigin:
    """How one token came about."""

    # Whether a draft had guessed it; otherwise the exact model chose it where no guess was right.
    drafted: bool
    # The pass that gave it: the first one of a reply that gave a token is 1.
    number: int


@dataclass(frozen=True)
class TokenPart:
    """What one token added to a text of one kind, `content` or `reasoning`."""

    kind: str
    text: str
    origin: TokenOrigin

    def told(self) -> dict[str, Any]:
        """The object that answers have for it."""
        return {"text": self.text, "kind": self.kind, "drafted": self.origin.drafted, "pass": self.origin.number}


class Origins:
    """Follows one `reply`: takes its steps in order, and divides the text of each by tokens."""

    def __init__(self, reply: TextStream):
        self._reply = reply
        # Of each token so far.
        self._origins: list[TokenOrigin] = []
        self._steps = 0
        # Characters that were divided, and the token that the next one belongs to.
        self._divided = 0
        self._token = 0

    @property
    def latest(self) -> TokenOrigin:
        """That of the last token; where no step gave one, what the exact model says."""
        return self._origins[-1] if self._origins else TokenOrigin(False, 1)

    def divided(self, step: Step) -> Iterator[tuple[str, TokenOrigin]]:
        """The text of the next step, token by token. A text that was held back belongs to the tokens that it came with."""
        self._steps += 1
        self._origins += [TokenOrigin(place < step.accepted, self._steps) for place in range(len(step.token_ids))]
        start = self._divided
        self._divided = start + len(step.text)
        at = start
        while at < self._divided:
            end = self._end(at)
            yield step.text[at - start : end - start], self._origins[self._token] if self._origins else self.latest
            at = end

    def _end(self, at: int) -> int:
        """The end of what belongs to the token of the character `at`, which becomes the token at hand."""
        last = len(self._origins) - 1
        while self._token < last and self._reply.ends[self._token] <= at:
            self._token += 1
        # What is told at the very end belongs to the last token.
        return self._divided if self._token >= last else min(self._reply.ends[self._token], self._divided)
