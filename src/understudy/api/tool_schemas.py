"""Schemas of tools, looked at before a request is taken: each alone, so that an error names the tool it is about.

What makes no sense is refused, whether a tool must be called or may be. What is a schema and beyond our grammars (such as `not` or
`uniqueItems`) is refused where arguments are held to it, and told to the model as it is where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..constraint import Constraint
from ..errors import UsageError
from .errors import ApiError
from .messages import ToolUse

# Parts of what is said of schemas that are none, or that nothing fits.
WRONG = (" must be ", "Expected ", "Invalid type", "does not exist", "Unsatisfiable", "nothing can be written", "can begin a text")
# What OpenAI's API says of such schemas.
CODE = "invalid_function_parameters"


class Compiler(Protocol):
    """What is used of a `GrammarCompiler`."""

    def trouble(self, constraint: Constraint) -> str: ...


def check_tools(grammars: Compiler, use: ToolUse) -> None:
    """Raise ApiError (400) for the first tool whose parameters are no schema, fit nothing, or cannot be enforced where they are."""
    for tool in use.tools:
        function = tool["function"]
        held = use.required or function["name"] in use.strict
        if why := _trouble(grammars, function, held):
            raise ApiError(400, f"tools: {why}", param="tools", code=CODE)


def _trouble(grammars: Compiler, function: Mapping[str, Any], held: bool) -> str:
    """What is wrong with the parameters of a tool; empty: nothing is."""
    name, schema = f"the schema of {function['name']!r}", function["parameters"]
    kind = schema.get("type", "object")
    if kind != "object":
        return f"{name} must be of type object, got {repr(kind)[:40]}."
    try:
        why = grammars.trouble(Constraint.json_schema({"type": "object", **schema}, name))
    except UsageError as error:
        return str(error)
    return why if held or any(part in why for part in WRONG) else ""
