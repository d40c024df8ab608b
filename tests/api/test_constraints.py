"""What a body says its text must be: each form that clients write makes the same constraint, and none is passed over."""

from __future__ import annotations

from typing import Any

import pytest

from understudy import Constraint
from understudy.api.errors import ApiError, answer_to
from understudy.api.protocol import ChatBody, CompletionBody
from understudy.errors import UsageError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
JSON = Constraint.json_schema(SCHEMA)
GBNF = 'root ::= "x"'


def made(**fields: Any) -> Constraint | None:
    """The constraint of a body, which is the same for both endpoints."""
    chat = ChatBody(messages=[], **fields).params(5).constraint
    assert CompletionBody(prompt="x", **fields).params(5).constraint == chat
    return chat


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "structured_outputs": None, "guided_json": None, "grammar": ""}, None),
        ({"response_format": {"type": "json_object"}}, Constraint.json_object()),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}}, JSON),
        ({"structured_outputs": {"json": SCHEMA}}, JSON),
        ({"structured_outputs": {"json": JSON.text, "regex": None, "json_object": False}}, JSON),
        ({"structured_outputs": {"json_object": True}}, Constraint.json_object()),
        ({"structured_outputs": {"regex": "a+"}}, Constraint.regex("a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint.choice(["a", "b"])),
        ({"structured_outputs": {"grammar": GBNF}}, Constraint.grammar(GBNF)),
        ({"guided_json": SCHEMA}, JSON),
        ({"guided_json": JSON.text}, JSON),
        ({"guided_regex": "a+"}, Constraint.regex("a+")),
        ({"guided_choice": ["a", "b"]}, Constraint.choice(["a", "b"])),
        ({"guided_grammar": GBNF}, Constraint.grammar(GBNF)),
        ({"grammar": GBNF}, Constraint.grammar(GBNF)),
    ],
    ids=str,
)
def test_each_form_makes_its_constraint(fields: dict[str, Any], expected: Constraint | None) -> None:
    found = made(**fields)
    assert found == expected
    if found is not None:
        assert found.name in fields, "messages name the field"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
        {"response_format": {"type": "json_object", "schema": 3}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": SCHEMA, "regex": "a"}},
        {"structured_outputs": {"regex": 3}},
        {"structured_outputs": {"choice": 3}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"structural_tag": "{}"}},
        {"structured_outputs": {"json_object": "yes"}},
        {"guided_json": "{"},
        {"guided_choice": [""]},
        {"guided_regex": ""},
        {"response_format": {"type": "json_object"}, "grammar": GBNF},
        {"guided_regex": "a", "guided_json": SCHEMA},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_a_400_with_the_name_of_the_field(fields: dict[str, Any]) -> None:
    with pytest.raises((ApiError, UsageError)) as error:
        made(**fields)
    told = answer_to(error.value)
    assert told.status == 400 and told.param in fields and "\n" not in told.message
    assert str(told.param) in told.message
