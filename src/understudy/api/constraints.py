"""What a body says its text must be, in each of the forms that clients write it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..constraint import Constraint
from .errors import ApiError

# How a value becomes a constraint, by what vLLM's `structured_outputs` and its older `guided_` fields call it.
KINDS: Mapping[str, Callable[[Any, str], Constraint]] = {
    "json": Constraint.json_schema,
    "regex": Constraint.regex,
    "choice": Constraint.choice,
    "grammar": Constraint.grammar,
}


def constraint_of(body: Any) -> Constraint | None:
    """What the text of `body` must be; None where it may be anything.

    Raises ApiError (400) or UsageError, which begins with the name of the field, for what makes no sense."""
    found = list(_constraints(body))
    if len(found) > 1:
        first, second = found[0].name, found[1].name
        raise ApiError(400, f"{second} cannot stand beside {first}: a text has one form.", param=second)
    return found[0] if found else None


def _constraints(body: Any) -> Iterator[Constraint]:
    """All that the fields of `body` ask for."""
    if body.response_format is not None:
        yield from _of_response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _of_structured_outputs(body.structured_outputs)
    for kind, make in KINDS.items():
        name = f"guided_{kind}"
        if getattr(body, name) is not None:
            yield make(getattr(body, name), name)
    # llama.cpp's; it takes an empty one for none.
    if body.grammar:
        yield Constraint.grammar(body.grammar, "grammar")


def _of_response_format(given: Mapping[str, Any]) -> Iterator[Constraint]:
    """OpenAI's field; llama.cpp lets a json_object have a `schema` too."""
    name = "response_format"
    kind = given.get("type")
    if kind == "json_object":
        schema = given.get("schema")
        yield Constraint.json_object(name) if schema is None else Constraint.json_schema(schema, name)
    elif kind == "json_schema":
        inner = given.get("json_schema")
        if not isinstance(inner, Mapping) or inner.get("schema") is None:
            raise ApiError(400, f"{name} needs a json_schema that has a schema.", param=name)
        yield Constraint.json_schema(inner["schema"], name)
    elif kind != "text":
        raise ApiError(400, f"{name} must be of type text, json_object or json_schema, got {str(kind)[:40]!r}.", param=name)


def _of_structured_outputs(given: Mapping[str, Any]) -> Iterator[Constraint]:
    """vLLM's field: an object with one of KINDS, or `json_object`."""
    name = "structured_outputs"
    asked = {kind: value for kind, value in given.items() if value is not None and value is not False}
    if unknown := sorted(set(asked) - {*KINDS, "json_object"}):
        raise ApiError(400, f"{name} takes {', '.join(KINDS)} or json_object, not {unknown[0][:40]!r}.", param=name)
    if len(asked) != 1:
        raise ApiError(400, f"{name} must have one of {', '.join(KINDS)} and json_object, got {len(asked)}.", param=name)
    if asked.get("json_object", True) is not True:
        raise ApiError(400, f"{name}: json_object must be true or false.", param=name)
    for kind, value in asked.items():
        yield KINDS[kind](value, name) if kind in KINDS else Constraint.json_object(name)
