"""Calls that a reply must make, as a grammar: whatever family the model is of, they are written as Hermes did.

Reasoning comes before them, and before any form that a reply must have, and is free."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..constraint import Constraint
from ..grammar_compiler import SPACE
from ..replies.families import Reasoning
from .messages import ToolUse

NAME = "tool_choice"


def required_calls(use: ToolUse) -> Constraint:
    """The grammar of a reply that calls one of the tools, or several where it may."""
    bodies = " | ".join(f"body_{place}" for place in range(len(use.tools)))
    more = "" if use.most_calls == 1 else ' ("\\n" call)*'
    lines = [f"start: call{more}", f'call: "<tool_call>\\n" ({bodies}) "\\n</tool_call>"']
    for place, tool in enumerate(use.tools):
        lines += _body(place, tool["function"])
    return Constraint.grammar("\n".join(lines), NAME)


@dataclass(frozen=True)
class Thought:
    """The reasoning that a reply begins with, or may begin with, for a grammar."""

    # Rules in Lark, the first of them called `before`, of what comes before a form; empty: nothing does.
    before: str = ""
    # What the reply writes before it; empty: the prompt did, or there is no reasoning.
    opened: str = ""

    @classmethod
    def of(cls, tokenizer: Any, reasoning: Reasoning | None, begun: bool) -> Thought:
        """A reasoning, to its closing mark and the blanks after it. begun: has the prompt begun it? If not, there may be none."""
        if reasoning is None:
            return cls()
        blanks = "blanks: /[\\n ]{0,2}/"
        if token := special(tokenizer, reasoning.closed):
            thought = [f"thought: free {token} blanks", "free: /(?s:.*)/", blanks]
        else:
            thought = ["thought: free blanks", f"free[lazy]: /(?s:.*){escaped(reasoning.closed)}/", blanks]
        title = f"{json.dumps(reasoning.title)} " if reasoning.title else ""
        start = f"before: ({mark(tokenizer, reasoning.opened)} {title}thought)?"
        return cls("\n".join(["before: thought" if begun else start, *thought]), "" if begun else reasoning.opened)

    def then(self, form: Constraint) -> Constraint:
        """`form` after the reasoning."""
        return replace(form, around=f"start: before @form\n{self.before}") if self.before else form


def arguments(place: int, parameters: Mapping[str, Any]) -> str:
    """The rule `given_<place>` of the arguments of a call."""
    told = json.dumps({"type": "object", **parameters, "x-guidance": {"whitespace_pattern": SPACE}}, ensure_ascii=False)
    return f"given_{place}: %json {told}"


def mark(tokenizer: Any, text: str) -> str:
    """A text as grammars write it, be it a special token or none."""
    return special(tokenizer, text) or json.dumps(text, ensure_ascii=False)


def special(tokenizer: Any, text: str) -> str:
    """A special token as grammars write it: its text is none to them; empty where `text` is no special token."""
    added = tokenizer._tokenizer.get_added_tokens_decoder().items()
    return next((f"<[{id}]>" for id, token in added if token.special and token.content == text), "")


def escaped(text: str) -> str:
    """A text within a regular expression of a grammar."""
    return re.escape(text).replace("/", "\\/")


def _body(place: int, function: Mapping[str, Any]) -> list[str]:
    """The rules of a call of one tool."""
    begin = json.dumps(f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": ', ensure_ascii=False)
    return [f'body_{place}: {begin} given_{place} "}}"', arguments(place, function["parameters"])]
