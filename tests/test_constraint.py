"""Constraints as they are made: what is no schema, too long or too deep is one line that begins with its name."""

from typing import Any

import pytest

from understudy import Constraint, SamplingParams
from understudy.constraint import DEEPEST, MOST_CHARACTERS
from understudy.errors import UsageError


def nested(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def itself() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["items"] = [schema, schema]
    return schema


def test_a_schema_may_be_a_value_or_its_text() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {"const": "é"}}}
    made = Constraint.json_schema(schema)
    assert made == Constraint.json_schema(made.text, "response_format"), "what it came from does not matter"
    assert made.text.index('"b"') < made.text.index('"a"') and "é" in made.text
    assert Constraint.json_schema(True) == Constraint.json_schema({})
    assert SamplingParams(constraint=made).constraint is made


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (Constraint.json_schema, "{"),
        (Constraint.json_schema, "[1]"),
        (Constraint.json_schema, "3"),
        (Constraint.json_schema, False),
        (Constraint.json_schema, {"const": float("nan")}),
        (Constraint.json_schema, {"const": range(3)}),
        (Constraint.json_schema, {"const": "\ud800"}),
        (Constraint.json_schema, nested(DEEPEST)),
        (Constraint.json_schema, "[" * 100_000),
        (Constraint.json_schema, itself()),
        (Constraint.json_schema, {"enum": ["x" * MOST_CHARACTERS]}),
        (Constraint.regex, ""),
        (Constraint.regex, "a" * (MOST_CHARACTERS + 1)),
        (Constraint.regex, 3),
        (Constraint.grammar, " \n"),
        (Constraint.choice, []),
        (Constraint.choice, 3),
        (Constraint.choice, "ab"),
        (Constraint.choice, ["a", ""]),
        (Constraint.choice, ["a", 3]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_makes_no_sense_is_refused_by_name(make: Any, value: Any) -> None:
    with pytest.raises(UsageError, match=r"^field ") as error:
        make(value, "field")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_depth_is_counted_in_levels() -> None:
    assert Constraint.json_schema(nested(DEEPEST - 1))
    with pytest.raises(UsageError, match="constraint must be a Constraint"):
        SamplingParams(constraint={"type": "object"})  # type: ignore[arg-type]
