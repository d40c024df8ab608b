"""Calls that a reply must make, as a grammar: whatever family the model is of, they are written as Hermes did.

Reasoning comes before them, and before any form that a reply must have, and is free."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..constraint import Constraint
from ..grammar_compiler import SPACE
from ..replies.families import Reasoning
from .messages import ToolUse

NAME = "tool_choice"


def required_calls(use: ToolUse) -> Constraint:
    """The grammar of a reply that calls one of the tools, or several where it may.

    Raises UsageError for a tool whose parameters are too large or too deep."""
    bodies = " | ".join(f"body_{place}" for place in range(len(use.tools)))
    more = "" if use.most_calls == 1 else ' ("\\n" call)*'
    lines = [f"start: call{more}", f'call: "<tool_call>\\n" ({bodies}) "\\n</tool_call>"']
    for place, tool in enumerate(use.tools):
        lines += _body(place, tool["function"])
    return Constraint.grammar("\n".join(lines), NAME)


def before_form(tokenizer: Any, reasoning: Reasoning, opened: bool) -> str:
    """The rules of a reasoning, to its closing mark and the blanks after it, before what a reply must be. opened: has the prompt
    begun it? If not, there may be none."""
    blanks = "blanks: /[\\n ]{0,2}/"
    if token := _special(tokenizer, reasoning.closed):
        thought = [f"thought: free {token} blanks", "free: /(?s:.*)/", blanks]
    else:
        closed = re.escape(reasoning.closed).replace("/", "\\/")
        thought = ["thought: free blanks", f"free[lazy]: /(?s:.*){closed}/", blanks]
    begun = _special(tokenizer, reasoning.opened) or json.dumps(reasoning.opened)
    title = f"{json.dumps(reasoning.title)} " if reasoning.title else ""
    return "\n".join(["before: thought" if opened else f"before: ({begun} {title}thought)?", *thought])


def _body(place: int, function: Mapping[str, Any]) -> list[str]:
    """The rules of a call of one tool."""
    schema = json.loads(Constraint.json_schema(function["parameters"], f"tools.{place}.function.parameters").text)
    told = json.dumps({**schema, "x-guidance": {"whitespace_pattern": SPACE}}, ensure_ascii=False)
    begin = json.dumps(f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": ', ensure_ascii=False)
    return [f'body_{place}: {begin} given_{place} "}}"', f"given_{place}: %json {told}"]


def _special(tokenizer: Any, mark: str) -> str:
    """A special token as grammars write it: its text is none to them; empty where `mark` is no special token."""
    added = tokenizer._tokenizer.get_added_tokens_decoder().items()
    return next((f"<[{id}]>" for id, token in added if token.special and token.content == mark), "")
