"""Calls of tools, as a model writes them in a reply: one value or many, in JSON or as Python would call them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# What stands between two calls in a row.
BETWEEN = re.compile(r"[\s;,]*")
# Characters of a text that is read as Python. Its parser wants memory for each of them, and for each bracket some stack.
MOST_PYTHON = 1 << 20


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool. `arguments` is the JSON text of an object."""

    name: str
    arguments: str


def calls_of(value: Any) -> list[ToolCall] | None:
    """The calls in what a field of a response template gave; None where it is no call, or not only calls."""
    if isinstance(value, str):
        value = _read(value)
    if isinstance(value, list):
        found = [calls_of(one) for one in value]
        return None if not found or None in found else [call for calls in found for call in calls or ()]
    if not isinstance(value, Mapping):
        return None
    inner = value.get("function")
    if isinstance(inner, Mapping):
        return calls_of(inner)
    name = inner if isinstance(inner, str) else value.get("name")
    arguments: Any = next((value[key] for key in ("arguments", "parameters", "args") if key in value), {})
    if isinstance(arguments, str):
        arguments = _loaded(arguments or "{}")
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        # A model may have escaped half of a character, which no answer can be written with.
        f"{name}{text}".encode()
    except (TypeError, ValueError, RecursionError):
        return None
    return [ToolCall(name, text)]


def _loaded(text: str) -> Any:
    """The JSON value of `text`; None where it has none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(text: str) -> list[Any] | None:
    """The values that follow one another in `text`: JSON, else calls in Python; None where it is neither."""
    try:
        found = list(_values(text))
    except (ValueError, RecursionError):
        found = _python_calls(text)
    return found or None


def _values(text: str) -> Iterator[Any]:
    """The JSON values of `text`. Raises ValueError, RecursionError."""
    decoder = json.JSONDecoder()
    place = _after(text, 0)
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        yield value
        place = _after(text, place)


def _after(text: str, place: int) -> int:
    """Where the next value begins."""
    found = BETWEEN.match(text, place)
    return place if found is None else found.end()


def _python_calls(text: str) -> list[dict[str, Any]]:
    """The calls in `[f(a=1), g()]`, or in lines of such calls; none where there is anything else."""
    if len(text) > MOST_PYTHON:
        return []
    try:
        body = ast.parse(text.strip(), mode="exec").body
        nodes = [node.value for node in body if isinstance(node, ast.Expr)]
        if len(nodes) != len(body):
            return []
        calls = [call for node in nodes for call in (node.elts if isinstance(node, ast.List) else [node])]
        return [_python_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _python_call(node: ast.expr) -> dict[str, Any]:
    """One call with arguments by name. Raises ValueError."""
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("this is no call with arguments by name")
    arguments = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    return {"name": ast.unparse(node.func), "arguments": arguments}


def _literal(node: ast.expr) -> Any:
    """The value of a literal; JSON's words count too. Raises ValueError."""
    words = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in words:
        return words[node.id]
    if isinstance(node, ast.List):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    return ast.literal_eval(node)
