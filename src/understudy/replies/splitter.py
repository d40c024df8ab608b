"""Splits one reply into its pieces as the text comes: however it is grouped, the pieces of each kind join to the same."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import CheckpointError
from .calls import ToolCall
from .format import ReplyFormat, is_call, is_reasoning


@dataclass(frozen=True)
class ReplyPiece:
    """A part of a reply: text to go on with, or one whole call."""

    kind: Literal["reasoning", "content", "call"]
    text: str = ""
    call: ToolCall | None = None


class ReplySplitter:
    """Splits the reply to a prompt that ends with `prefix`, in which a field may have begun. CheckpointError for a faulty template.

    most_calls: those after so many are left out; None: none are."""

    def __init__(self, form: ReplyFormat, prefix: str = "", most_calls: int | None = None):
        from transformers.utils.chat_parsing import ResponseParser

        self.calls = 0
        self._form = form
        self._most = most_calls
        try:
            self._parser = ResponseParser(form.template, prefix=prefix)
            fields = [(event["field"], event["type"]) for event in self._parser.initial_events]
            marked = [name for name, _ in fields if is_reasoning(name) or is_call(name)]
            if not marked:
                # Some marks only count at the beginning of a reply.
                self._parser = ResponseParser(form.template, prefix="")
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"The response template of this model is faulty: {error}.") from None
        # The texts of all reasonings, blanks included.
        self._reasonings = [""] if marked and is_reasoning(fields[-1][0]) and fields[-1][1] != "region_close" else []
        # Blanks after a mark are not told, nor at the beginning of a reply that may begin with one.
        self._strips = bool(marked) or any(map(is_reasoning, form.fields))

    @property
    def may_call(self) -> bool:
        """Whether the reply may call tools."""
        return bool(self._form.tools)

    @property
    def begun(self) -> bool:
        """Whether a reasoning has begun, in the prompt before anything was fed."""
        return bool(self._reasonings)

    def feed(self, text: str) -> list[ReplyPiece]:
        """The pieces that are decided with `text`."""
        return self._pieces(self._parser.feed(text), ended=False, cut=False)

    def finish(self, reason: str) -> list[ReplyPiece]:
        """The pieces that are left at the end. reason: why the reply ended; a call that "length" cut off is text."""
        return self._pieces(self._parser.finalize()[1], ended=True, cut=reason == "length")

    def reasoning_tokens(self, text: str, ends: Sequence[int]) -> int:
        """How many tokens of the reply `text` belong to its reasoning. ends: the characters of `text` after each token."""
        place = count = 0
        for reasoning in self._reasonings:
            start = text.find(reasoning, place)
            place = start + len(reasoning)
            count += bisect_right(ends, place) - bisect_right(ends, start) if reasoning else 0
        return count

    def _pieces(self, events: list[dict[str, Any]], ended: bool, cut: bool) -> list[ReplyPiece]:
        found: list[ReplyPiece] = []
        for event in events:
            name, kind = event["field"], event["type"]
            if kind == "region_open" and is_reasoning(name):
                self._reasonings.append("")
                self._strips = True
            elif kind == "region_close" and is_reasoning(name):
                self._strips = True
            elif kind == "region_close" and is_call(name):
                found += self._called(name, event["value"], ended, cut)
            elif kind == "region_chunk" and not is_call(name):
                found += self._told(name, event["text"])
        return joined(found)

    def _told(self, name: str, text: str) -> list[ReplyPiece]:
        """The piece that goes on with a text."""
        if is_reasoning(name):
            self._reasonings[-1] += text
        if self._strips:
            text = text.lstrip()
        if not text:
            return []
        self._strips = False
        return [ReplyPiece("reasoning" if is_reasoning(name) else "content", text)]

    def _called(self, name: str, value: dict[str, str], ended: bool, cut: bool) -> list[ReplyPiece]:
        """The calls of one field; its text where it is no call."""
        closed = self._form.fields[name].get("close")
        calls = None if cut and closed else self._form.calls(name, value["opened"], value["body"])
        if calls is None:
            mark = closed if isinstance(closed, str) and not ended else ""
            return self._told("content", value["opened"] + value["body"] + mark)
        self._strips = True
        kept = calls if self._most is None else calls[: max(self._most - self.calls, 0)]
        self.calls += len(kept)
        return [ReplyPiece("call", call=call) for call in kept]


def joined(pieces: list[ReplyPiece]) -> list[ReplyPiece]:
    """The pieces with texts of one kind that follow one another in one."""
    found: list[ReplyPiece] = []
    for piece in pieces:
        if found and piece.call is None and found[-1].kind == piece.kind:
            found[-1] = replace(piece, text=found[-1].text + piece.text)
        else:
            found.append(piece)
    return found
