"""A schema that requires itself, in itself, has no finite text; one that may stop somewhere has."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from understudy.schema_ends import ends


def node(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


ENDLESS: dict[str, Any] = {
    "itself": {"$ref": "#"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a required property": node(next={"$ref": "#"}),
    "a property of a property": node(one=node(two={"$ref": "#/properties/one"})),
    "both ways": {"$defs": {"n": {"anyOf": [node(a={"$ref": "#/$defs/n"}), node(b={"$ref": "#/$defs/n"})]}}, "$ref": "#/$defs/n"},
    "all of": {"allOf": [{"type": "object"}, node(a={"$ref": "#"})]},
    "items": {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
    "first items": {"type": "array", "minItems": 2, "prefixItems": [True, {"$ref": "#"}]},
    "a name with signs": {"$defs": {"a/b~": node(x={"$ref": "#/$defs/a~1b~0"})}, "$ref": "#/$defs/a~1b~0"},
}
ENDING: dict[str, Any] = {
    "anything": {},
    "a property that may be missing": {"type": "object", "properties": {"next": {"$ref": "#"}}},
    "a list": {"$defs": {"n": node(next={"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]})}, "$ref": "#/$defs/n"},
    "a tree": node(children={"type": "array", "items": {"$ref": "#"}}),
    "no type": {"properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    "elsewhere": {"$ref": "https://example.com/schema"},
    "nowhere": {"$ref": "#/$defs/none"},
    "a number as reference": {"$ref": 3, "properties": {"$ref": {"type": "string"}}},
    "far away": {"$defs": {"a": node(b={"$ref": "#/$defs/b"}), "b": node(c={"$ref": "#/$defs/c"}), "c": {}}, "$ref": "#/$defs/a"},
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_schema_is_found_out(name: str) -> None:
    assert not ends(ENDLESS[name])


@pytest.mark.parametrize("name", ENDING)
def test_a_schema_that_may_end_is_left_alone(name: str) -> None:
    assert ends(ENDING[name])


def test_no_schema_takes_long() -> None:
    """A chain of references of which each round finds one, each in the wrong place of a large schema."""
    chain = {f"n{i}": node(a={"$ref": f"#/$defs/n{i + 1}"}) for i in range(2500)} | {"n2500": {}}
    large = {"$defs": chain, "$ref": "#/$defs/n0"}
    assert len(json.dumps(large)) < 1 << 18
    start = time.perf_counter()
    assert ends(large)
    assert time.perf_counter() - start < 5
