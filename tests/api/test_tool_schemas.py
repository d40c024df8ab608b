"""Schemas of tools: what makes no sense is refused by the tool's name, what is only beyond a grammar where it would be needed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.test_grammar_compiler import IMPOSSIBLE
from tests.tiny import byte_tokenizer
from understudy.api.errors import ApiError
from understudy.api.messages import ToolUse
from understudy.api.tool_schemas import check_tools
from understudy.grammar_compiler import GrammarCompiler

COMPILER = GrammarCompiler(byte_tokenizer(), 256)
GOOD = {"type": "object", "properties": {"a": {"type": "integer"}}}


def inside(schema: Any) -> dict[str, Any]:
    """Parameters of which a required one is by `schema`, whose references still mean the same."""
    more = {"$defs": schema["$defs"]} if isinstance(schema, dict) and "$defs" in schema else {}
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **more}


def uses(parameters: Any, **how: Any) -> ToolUse:
    tools = [{"type": "function", "function": {"name": name, "parameters": own}} for name, own in (("g", GOOD), ("f", parameters))]
    return ToolUse(tools, **how)


def refused(use: ToolUse) -> str:
    """What is said of the tools, all of it by one line; empty: they are taken."""
    try:
        check_tools(COMPILER, use)
    except ApiError as error:
        assert error.status == 400 and error.param == "tools" and error.code == "invalid_function_parameters"
        assert error.message.startswith("tools: the schema of 'f' ") and "\n" not in error.message
        return error.message
    return ""


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_no_impossible_schema_is_enforced(name: str) -> None:
    """Beside a tool whose schema is fine, which a grammar of both would let a model call."""
    assert refused(uses(inside(IMPOSSIBLE[name]), required=True))
    assert refused(uses(inside(IMPOSSIBLE[name]), strict=frozenset("f")))


WRONG = ["contradictory", "false", "required and impossible", "nowhere", "no such type", "patterns that meet nowhere", "itself"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_of_calls_by_choice_only_what_makes_no_sense_is_refused(name: str) -> None:
    assert bool(refused(uses(inside(IMPOSSIBLE[name])))) == (name in WRONG or name == "a circle")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"type": "string"}, "must be of type object, got 'string'"),
        ({"type": ["object", "null"]}, "must be of type object"),
        ({"$ref": "#"}, "without end"),
        ({"type": "object", "properties": []}, "properties must be an object"),
        ({"type": "object", "required": "a"}, "Expected array for 'required'"),
        ({"a": "x" * (1 << 18)}, "characters"),
    ],
    ids=str,
)
@pytest.mark.parametrize("required", [True, False])
def test_what_is_no_schema_of_arguments_is_refused_either_way(parameters: Any, says: str, required: bool) -> None:
    assert says in refused(uses(parameters, required=required))


def test_usual_schemas_are_taken_and_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own = GrammarCompiler(byte_tokenizer(), 256)
    compiled: list[str] = []
    compile = own._compile
    monkeypatch.setattr(own, "_compile", lambda constraint: compiled.append(constraint.text) or compile(constraint))  # type: ignore[func-returns-value]
    recursive = {"type": "object", "properties": {"next": {"$ref": "#"}, "tags": {"type": "array", "uniqueItems": True}}}
    many = [{"type": "function", "function": {"name": f"t{i}", "parameters": {**GOOD, "title": f"t{i}"}}} for i in range(40)]
    for _ in range(3):
        check_tools(own, uses({}))
        check_tools(own, uses(recursive))
        check_tools(own, ToolUse(many, required=True))
    assert len(compiled) == len(set(compiled)) == 2 + 1 + 40 and not own._compiled
