"""`Constraint`: what a text must be. A value, checked for its size as it is made; `grammar_compiler.py` makes masks of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError
from .schema_ends import ends

# The longest text of a schema, a regular expression or a grammar, in characters.
MOST_CHARACTERS = 1 << 18
# How deep a schema may be nested: objects and lists in one another.
DEEPEST = 100
# What messages call a constraint that is given in Python.
NAME = "constraint"

JSON_SCHEMA, REGEX, GRAMMAR = "json_schema", "regex", "grammar"


@dataclass(frozen=True)
class Constraint:
    """What a generated text must be, from its first character on; prompts do not count.

    Make one with `json_schema`, `json_object`, `regex`, `grammar` or `choice`. All of them raise UsageError, in a line that begins
    with `name`, for what is no such thing, too long or too deep. What else is wrong is found when a model compiles it."""

    # JSON_SCHEMA, REGEX or GRAMMAR.
    kind: str
    # The schema in JSON, the regular expression, or the grammar.
    text: str
    # What messages call it: the field or the option that it came from.
    name: str = field(default=NAME, compare=False)
    # A grammar in Lark of the whole text, which calls what the constraint allows `@form`; empty: the text is that alone.
    around: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise UsageError(f"{self.name} must be a {self.kind.replace('_', ' ')}, got nothing.")
        if len(self.text) > MOST_CHARACTERS:
            raise UsageError(f"{self.name} has {len(self.text)} characters, {MOST_CHARACTERS} are the most.")
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{self.name} is not valid Unicode.") from None

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str, name: str = NAME) -> Constraint:
        """JSON that is valid by `schema`, which may be given as its own text. Properties come in the order in which it has them."""
        value = _parsed(schema, name) if isinstance(schema, str) else schema
        value = {} if value is True else value
        if value is False:
            raise UsageError(f"{name} is false: no JSON is valid by it.")
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} must be a JSON schema, which is an object or true.")
        check_depth(value, name)
        if not ends(value):
            raise UsageError(f"{name} cannot be used: it requires itself, in itself, without end.")
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name} cannot be written as JSON: {error}.") from None
        return cls(JSON_SCHEMA, text, name)

    @classmethod
    def json_object(cls, name: str = NAME) -> Constraint:
        """Any JSON object."""
        return cls(JSON_SCHEMA, '{"type":"object"}', name)

    @classmethod
    def regex(cls, pattern: str, name: str = NAME) -> Constraint:
        """A text that matches all of `pattern`, in the syntax of Rust's `regex`, which has neither look-around nor references."""
        return cls(REGEX, pattern, name)

    @classmethod
    def grammar(cls, text: str, name: str = NAME) -> Constraint:
        """A text of a context-free grammar, in llguidance's Lark (the first rule is `start`) or llama.cpp's GBNF (`root ::=`)."""
        return cls(GRAMMAR, text, name)

    @classmethod
    def choice(cls, texts: Iterable[str], name: str = NAME) -> Constraint:
        """One of `texts`."""
        listed = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else []
        if not listed or not all(isinstance(text, str) and text for text in listed):
            raise UsageError(f"{name} must be a list of texts, none of them empty.")
        return cls(GRAMMAR, "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in listed), name)


def _parsed(text: str, name: str) -> Any:
    """The JSON value of `text`. UsageError where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UsageError(_too_deep(name)) from None
    except ValueError as error:
        raise UsageError(f"{name} is not valid JSON: {error}.") from None


def _too_deep(name: str) -> str:
    return f"{name} is nested deeper than {DEEPEST} levels."


def check_depth(value: Any, name: str) -> None:
    """UsageError where objects and lists are nested deeper than DEEPEST, or are too many."""
    level = [value]
    for _ in range(DEEPEST + 1):
        children = [child for parent in level for child in _children(parent)]
        if not children:
            return
        if len(children) > MOST_CHARACTERS:
            raise UsageError(f"{name} has more than {MOST_CHARACTERS} values.")
        level = children
    raise UsageError(_too_deep(name))


def _children(value: Any) -> Iterable[Any]:
    """The values in an object or a list."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()
