"""Calls of strict tools that a model makes by its own choice, as a grammar: a reply is free, until a call begins.

The grammar knows a call by what models of the family write before it. From there on it is a call of one of the request's tools,
with arguments that fit the tool's schema where it is strict, and are any JSON object where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ..constraint import Constraint
from ..grammar_compiler import SPACE
from ..replies.families import CallShape, Family
from ..replies.format import ReplyFormat, family_of
from ..replies.splitter import ReplySplitter
from .enforced import Thought, arguments, escaped, mark, special
from .errors import ApiError
from .messages import ToolUse

NAME = "tools"
# What may stand between two parts of a call, in a regular expression.
BLANK = f"({SPACE})?"
# Arguments of a call that shows how calls are read.
SAMPLE = '{"a": 1}'


def strict_reply(tokenizer: Any, form: ReplyFormat, use: ToolUse, thought: Thought, own: Constraint | None) -> Constraint:
    """What a reply must be that may call `use.tools`, after its reasoning.

    own: the form of a reply without calls; None: it is free. Raises ApiError (400) where no grammar knows how the model calls."""
    family = family_of(tokenizer)
    if not family.shapes or not all(_is_read(family, shape, form, use) for shape in family.shapes):
        raise _refused(use, "as this model writes no JSON in them")
    if not family.opened and (own is not None or thought.before):
        what = "a reply that reasons" if own is None else f"one that has a {own.name}"
        raise _refused(use, f"as nothing tells a call of this model from {what}")
    if own is None:
        rules = _free(tokenizer, family, thought)
    else:
        rules = ["reply: @form | (opening calls)+", f"opening: /{BLANK}/ {mark(tokenizer, family.opened)}"]
    start = f"start: {'before ' if thought.before else ''}reply"
    text = "\n".join(filter(None, [start, thought.before, *rules, *_calls(tokenizer, family, use)]))
    return Constraint.grammar(text, NAME) if own is None else replace(own, around=text)


def _refused(use: ToolUse, why: str) -> ApiError:
    what = f"tools: strict of {min(use.strict)!r} cannot be kept where calls are the model's choice, {why}"
    return ApiError(400, f'{what}: leave strict out, or ask for tool_choice "required".', param=NAME)


def _free(tokenizer: Any, family: Family, thought: Thought) -> list[str]:
    """The rules of a `reply` that is free up to each of its calls."""
    if not family.opened:
        return ["reply: TEXT | calls", f"TEXT: /(?s:.*)/ & ~/{family.begins}(?s:.*)/"]
    if token := special(tokenizer, family.opened):
        return ["reply: (TEXT opening calls)* TEXT", f"opening: {token}", "TEXT: /(?s:.*)/"]
    opened = f"(?s:.*){escaped(family.opened)}"
    rules = [f"opening[lazy]: /{opened}/", f"TEXT: /(?s:.*)/ & ~/{opened}(?s:.*)/"]
    if not thought.opened or special(tokenizer, thought.opened):
        return ["reply: (opening calls)* TEXT", *rules]
    # A reasoning may speak of the mark: what begins like one is nothing else.
    begun = f"~/{escaped(thought.opened)}(?s:.*)/"
    first = [f"first[lazy]: /{opened}/ & {begun}", f"ONLY: /(?s:.*)/ & ~/{opened}(?s:.*)/ & {begun}"]
    return ["reply: first calls (opening calls)* TEXT | ONLY", *rules, *first]


def _calls(tokenizer: Any, family: Family, use: ToolUse) -> list[str]:
    """The rules of `calls`: what may stand after the family's opening mark."""
    lines = [f"calls: {' | '.join(f'calls_{place}' for place in range(len(family.shapes)))}"]
    for number, shape in enumerate(family.shapes):
        one = f"one_{number}"
        whole = f"LIST {one} (COMMA {one})* LISTED" if shape.listed else one
        close = f" END {mark(tokenizer, shape.close)}" if shape.close else ""
        lines.append(f"calls_{number}: {whole}{close if shape.closes else f'({close})?'}")
        lines.append(f"{one}: " + " | ".join(_call(tokenizer, shape, place, use) for place in range(len(use.tools))))
    separators = (("LIST", r"\["), ("LISTED", r"\]"), ("COMMA", ","), ("BRACE", r"\}"))
    lines += [f"{name}: /{BLANK}{text}/" for name, text in separators] + [f"END: /{BLANK}/"]
    for place, tool in enumerate(use.tools):
        function = tool["function"]
        strict = function["name"] in use.strict
        lines.append(arguments(place, function["parameters"] if strict else {"type": "object"}))
    return lines


def _call(tokenizer: Any, shape: CallShape, place: int, use: ToolUse) -> str:
    """A call of the tool at `place`."""
    name = use.tools[place]["function"]["name"]
    if not shape.key:
        return f"/{BLANK}{escaped(name)}/ {mark(tokenizer, shape.between)} END given_{place}"
    own = escaped(json.dumps(name, ensure_ascii=False))
    begin = rf'{BLANK}\{{{BLANK}"name"{BLANK}:{BLANK}{own}{BLANK},{BLANK}"{shape.key}"{BLANK}:{BLANK}'
    return f"/{begin}/ given_{place} BRACE"


def _is_read(family: Family, shape: CallShape, form: ReplyFormat, use: ToolUse) -> bool:
    """Whether a call of this shape is a call to what reads the replies: a tokenizer may have a response template of its own."""
    name = use.tools[0]["function"]["name"]
    call = f'{{"name": {json.dumps(name)}, "{shape.key}": {SAMPLE}}}' if shape.key else f"{name}{shape.between}{SAMPLE}"
    splitter = ReplySplitter(form)
    pieces = splitter.feed(family.opened + (f"[{call}]" if shape.listed else call) + shape.close)
    found = [piece.call for piece in [*pieces, *splitter.finish("stop")]]
    return len(found) == 1 and found[0] is not None and (found[0].name, found[0].arguments) == (name, SAMPLE)
