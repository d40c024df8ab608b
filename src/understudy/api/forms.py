"""How answers are written: what all endpoints have in common, and what the completion endpoints and the APIs of agents do."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ..logprobs import TokenLogprob
from ..replies.calls import ToolCall
from ..replies.splitter import ReplyPiece, ReplySplitter
from ..request import Request
from .errors import ApiError
from .origins import TokenPart
from .protocol import SamplingFields

# JSON has no infinity: the log-probability of what cannot be, as vLLM writes it.
LEAST = -9999.0
# A comment of a stream: it says that the server is alive, and clients skip it.
ALIVE = ": alive\n\n"
DONE = "data: [DONE]\n\n"


@dataclass
class Said:
    """What a choice says, or a piece of it."""

    text: str = ""
    # The text split into reasoning, content and calls; calls leave the marks around them out.
    pieces: list[ReplyPiece] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    # None while the choice goes on.
    reason: str | None = None
    # None where they were not asked for; those of the prompt come with the first piece.
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    # How its text came about, and the figures so far; None where they were not asked for.
    tokens: list[TokenPart] | None = None
    figures: dict[str, Any] | None = None

    def add(self, other: Said) -> None:
        """Go on with `other`."""
        self.text += other.text
        self.pieces += other.pieces
        self.token_ids += other.token_ids
        self.reason = other.reason
        if other.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *other.logprobs]
        if other.prompt_logprobs is not None:
            self.prompt_logprobs = other.prompt_logprobs
        if other.tokens is not None:
            self.tokens = [*(self.tokens or []), *other.tokens]

    def joined(self, kind: str) -> str:
        """All text of one kind."""
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)


class Form(Protocol):
    """How one endpoint writes its answers."""

    @property
    def splitters(self) -> Sequence[ReplySplitter | None]:
        """What splits the text of each choice; None: nothing does."""

    def opening(self) -> Iterator[str]:
        """The first events of a stream, before any text."""

    def piece(self, index: int, said: Said) -> Iterator[str]:
        """The events of what one pass gave a choice; the last one has a reason. The pieces of a choice come in order."""

    def alive(self) -> str:
        """An event that says that the server is alive."""

    def failure(self, error: ApiError) -> str:
        """The event that ends a stream with an error."""

    def closing(self, figures: Mapping[str, Any]) -> Iterator[str]:
        """The last events of a stream, after all choices have ended."""

    def whole(self, said: Sequence[Said], figures: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer."""


class Beginning(Protocol):
    """What a stream says before there is a model that answers. A `Form` is one too."""

    def opening(self) -> Iterator[str]:
        """The first events."""

    def alive(self) -> str:
        """An event that says that the server is alive."""

    def failure(self, error: ApiError) -> str:
        """The event that ends the stream with an error."""


@dataclass(frozen=True)
class Patience:
    """The beginning of a stream whose form is made with its requests."""

    # An event that says that the server is alive.
    sign: str = ALIVE
    # The name of events that tell errors, and the object that such an event has; no name: events have none.
    told: Callable[[ApiError], Mapping[str, Any]] = ApiError.body
    name: str | None = None

    def opening(self) -> Iterator[str]:
        yield self.sign

    def alive(self) -> str:
        return self.sign

    def failure(self, error: ApiError) -> str:
        return event(self.told(error), self.name)


@dataclass
class Chunked(ABC):
    """What the completion endpoints have in common: a stream is chunks with a choice each, and `[DONE]`."""

    body: SamplingFields
    requests: Sequence[Request]
    model: str
    splitters: Sequence[ReplySplitter | None]
    # What ids begin with, and what kind of object an answer and a chunk are.
    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    @abstractmethod
    def begin(self, index: int) -> dict[str, Any] | None:
        """The first choice of a stream, before any text; None: there is none."""

    @abstractmethod
    def pieces(self, index: int, said: Said) -> Iterator[dict[str, Any]]:
        """The choices of what one pass gave; none where it gave nothing to tell."""

    @abstractmethod
    def end(self, index: int, reason: str) -> dict[str, Any]:
        """The choice of a chunk that says why the text ended."""

    @abstractmethod
    def choice(self, index: int, said: Said) -> dict[str, Any]:
        """The choice of a whole answer."""

    def opening(self) -> Iterator[str]:
        for index in range(len(self.requests)):
            begun = self.begin(index)
            yield ALIVE if begun is None else self._chunk(self._with_ids(begun, index, [], first=True))

    def piece(self, index: int, said: Said) -> Iterator[str]:
        ids, tokens, figures = said.token_ids, said.tokens, said.figures
        for choice in self.pieces(index, said):
            yield self._chunk(self._with_ids(with_tokens(choice, tokens), index, ids), figures)
            # What a pass gave is told once, with the first of its chunks.
            ids, tokens, figures = [], None, None
        if said.reason is not None:
            yield self._chunk(self.end(index, said.reason))

    def alive(self) -> str:
        return ALIVE

    def failure(self, error: ApiError) -> str:
        return event(error.body())

    def closing(self, figures: Mapping[str, Any]) -> Iterator[str]:
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield event({**self._object(self.chunk_kind), "choices": [], **figures})
        yield DONE

    def whole(self, said: Sequence[Said], figures: Mapping[str, Any]) -> dict[str, Any]:
        told = [with_tokens(self.choice(index, own), own.tokens) for index, own in enumerate(said)]
        choices = [self._with_ids(told[index], index, own.token_ids, first=True) for index, own in enumerate(said)]
        return {**self._object(self.kind), "choices": choices, **figures}

    def _with_ids(self, choice: dict[str, Any], index: int, ids: list[int], first: bool = False) -> dict[str, Any]:
        """`choice` with the ids of its tokens, and at `first` those of the prompt, where they were asked for."""
        if self.body.return_token_ids:
            sequence = self.requests[index].sequence
            choice["token_ids"] = ids
            if first:
                choice["prompt_token_ids"] = sequence.tokens[: sequence.prompt_length]
        return choice

    def _object(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": None}

    def _chunk(self, choice: dict[str, Any], figures: Mapping[str, Any] | None = None) -> str:
        more = {} if figures is None else {"understudy": figures}
        return event({**self._object(self.chunk_kind), "choices": [choice], **more})


def with_tokens(choice: dict[str, Any], tokens: Sequence[TokenPart] | None) -> dict[str, Any]:
    """`choice` with how its tokens came about, where that was asked for."""
    return choice if tokens is None else {**choice, "drafting": {"tokens": [token.told() for token in tokens]}}


class Parted(ABC):
    """What the APIs of agents have in common: an answer is parts one after another, texts of some kind and calls.

    `reason`: why the reply ended."""

    # What a text is called, by the kind of the reply's pieces.
    kinds: ClassVar[Mapping[str, str]]
    reason = "stop"

    @abstractmethod
    def _told(self, kind: str, text: str) -> Iterator[str]:
        """The events that go on with a text."""

    @abstractmethod
    def _called(self, call: ToolCall) -> Iterator[str]:
        """The events of a call."""

    @abstractmethod
    def _close(self) -> Iterator[str]:
        """The events that end the text under way, if there is one."""

    def piece(self, index: int, said: Said) -> Iterator[str]:
        for piece in said.pieces:
            if piece.call is not None:
                yield from self._close()
                yield from self._called(piece.call)
            else:
                yield from self._told(self.kinds[piece.kind], piece.text)
        if said.reason is not None:
            self.reason = said.reason

    def _tell(self, said: Sequence[Said]) -> None:
        """Take in a whole answer, whose events nobody waits for."""
        for index, one in enumerate(said):
            for _ in self.piece(index, one):
                pass
        for _ in self._close():
            pass


def event(content: Mapping[str, Any], name: str | None = None) -> str:
    """A server-sent event of JSON."""
    data = f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"
    return data if name is None else f"event: {name}\n{data}"
