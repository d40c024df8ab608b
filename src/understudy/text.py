"""Tokens to text, as it streams: never half a character, and nothing of a stop string that may yet turn out to be one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from .detokenizer import Detokenizer


class TextStream:
    """The text of one sequence. `feed` is called once per new token; `stopped` says that a stop string was reached.

    A stop string that is complete within the first `least` tokens does not count. Special tokens in
    `kept` are a part of the text."""

    def __init__(
        self,
        tokenizer: Any,
        stops: Sequence[str] = (),
        prompt: Sequence[int] = (),
        least: int = 0,
        kept: Collection[int] = (),
    ):
        self._tokens = Detokenizer(tokenizer, prompt, kept)
        self._stops = tuple(stops)
        self._least = least
        # Tokens that were fed.
        self._fed = 0
        # Characters of `_pending` in which a stop string that ends there does not count.
        self._exempt = 0
        # Characters of a text that may be the beginning of a stop string.
        self._reach = max(map(len, self._stops), default=1) - 1
        # Text that is final and was not taken.
        self._pending = ""
        self.text = ""
        # Characters that were final after each token.
        self.ends: list[int] = []
        # The stop string that ended the text; None as long as none has.
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was reached."""
        return self.stop is not None

    def feed(self, token: int) -> bool:
        """Take one token; True when the text now holds a stop string (which, with what follows it, is left out)."""
        searched = max(len(self._pending) - self._reach, 0)
        self._pending += self._tokens.add(token)
        self._fed += 1
        if self._stops and self._fed <= self._least:
            self._exempt = len(self._pending) + len(self._tokens.tail())
        elif self._stops:
            self._cut(searched, self._tokens.tail())
        self.ends.append(len(self.text) + len(self._pending))
        return self.stopped

    def take(self, final: bool = False) -> str:
        """Text that is decided since the last call; with `final` all that is left."""
        if final and not self.stopped:
            rest = self._tokens.finish()
            self._cut(max(len(self._pending) - self._reach, 0), rest)
            self._pending += "" if self.stopped else rest
        kept = 0 if final or self.stopped else self._undecided()
        ready, self._pending = self._pending[: len(self._pending) - kept], self._pending[len(self._pending) - kept :]
        self._exempt = max(self._exempt - len(ready), 0)
        self.text += ready
        return ready

    def _cut(self, searched: int, tail: str) -> None:
        """End the text before the first stop string in what is pending from `searched` on, followed by `tail`."""
        text = self._pending[searched:] + tail
        exempt = self._exempt - searched
        found = [(text.find(stop, max(exempt - len(stop) + 1, 0)), stop) for stop in self._stops]
        if places := [place for place, _ in found if place >= 0]:
            self._pending = self._pending[:searched] + text[: min(places)]
            self.stop = next(stop for place, stop in found if place == min(places))

    def _undecided(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        for size in range(min(self._reach, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-size:]) for stop in self._stops):
                return size
        return 0
