"""A sequence of tokens under way: what the engine runs and a drafter looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .grammar import GrammarState
from .logprobs import TokenLogprob
from .params import SamplingParams
from .reasoning import ReasoningState


def never(token: int) -> bool:
    return False


@dataclass(eq=False)
class TokenSequence:
    """A text under way, compared by identity. Between passes, the KV cache holds all of its tokens but the last one."""

    # The cache row that holds its keys and values; -1 before it is admitted.
    row: int
    # Token ids of the prompt, followed by the generated ones.
    tokens: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    # Token ids that end the text.
    stop_ids: frozenset[int] = frozenset()
    # Asked once for every new token, in order: does generation end with it?
    stops: Callable[[int], bool] = never
    # What its text must be; None: anything.
    grammar: GrammarState | None = None
    # Where it stands in its budget of reasoning; None: it has none.
    reasoning: ReasoningState | None = None
    # The most new tokens; 0 before it is admitted means params.max_new_tokens.
    limit: int = 0
    # The slot of its cache row at which its next node lies; more than its length where rows are padded.
    end: int = 0
    # Tokens that its continuation is likely to repeat, as the caller thinks: where drafters look for guesses besides `tokens`.
    prediction: list[int] = field(default_factory=list)
    # How many of `tokens` are the prompt: all that there are at first, where nothing else is said.
    prompt_length: int = 0
    # How many tokens of the prompt were not read, since a cache row held them already.
    reused: int = 0
    # The most tokens of the text that may be taken from what was read before; None: all.
    reusable: int | None = None
    # How many of them came from the disk, and whether they were looked for there.
    loaded: int = 0
    sought: bool = False
    # Reading stops once after so many tokens, so that what layers hold there can be kept; 0: nowhere.
    pause: int = 0
    # Tokens that its row held and had to give up, since a layer could not go back to where its text went on.
    read_again: int = 0
    # "stop", "length", "cancelled" or "error"; None while the text goes on.
    finish_reason: str | None = None
    # Log-probabilities of the generated tokens, and of the prompt's tokens but the first, as far as they are known and asked for.
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    # What `tally` counted up to now, by token, and how many tokens it has looked at.
    _counts: dict[int, int] = field(default_factory=dict, repr=False)
    _counted: int = 0

    def __post_init__(self) -> None:
        self.prompt_length = self.prompt_length or len(self.tokens)

    def tally(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The different tokens [c] of the text, and how often each was generated [c]: 0 for those of the prompt alone."""
        for place in range(self._counted, len(self.tokens)):
            token = self.tokens[place]
            self._counts[token] = self._counts.get(token, 0) + (place >= self.prompt_length)
        self._counted = len(self.tokens)
        size = len(self._counts)
        counts = np.fromiter(self._counts.values(), np.float32, size)
        return np.fromiter(self._counts, np.int64, size), counts

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for and not all known."""
        asked = self.params.prompt_logprobs is not None
        return asked and len(self.prompt_logprobs) < self.prompt_length - 1

    def lookup(self, reach: int) -> list[int]:
        """The tokens in which a drafter looks for the last ones (at most `reach`) once more: the prediction, as if it had followed
        the prompt once before, and the text."""
        if not self.prediction:
            return self.tokens
        return [*self.tokens[max(self.prompt_length - reach, 0) : self.prompt_length], *self.prediction, *self.tokens]

    @property
    def produced(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens) - self.prompt_length

    def before_pause(self, length: int, count: int) -> int:
        """How many of the `count` tokens after the first `length` are read before reading pauses."""
        return self.pause - length if length < self.pause < length + count else count

    @property
    def to_share(self) -> list[int]:
        """The tokens that may be taken from what was read before: all but the last one, after which the next one is chosen."""
        most = len(self.tokens) - 1
        return self.tokens[: most if self.reusable is None else min(most, self.reusable)]

    @property
    def longest(self) -> int:
        """How many tokens it has at most in the end, those of the prompt included."""
        return self.prompt_length + (self.limit or self.params.max_new_tokens)

    @property
    def remaining(self) -> int:
        """How many more tokens may be generated."""
        return self.limit - self.produced

    def take(self, token: int) -> None:
        """Go on with `token`, as plain decoding would; it may end the text."""
        self.tokens.append(token)
        if token in self.stop_ids or self.stops(token):
            self.finish_reason = "stop"
        elif self.remaining <= 0:
            self.finish_reason = "length"
