"""Schemas, regular expressions and trees that hypothesis draws, and whether a text fits them."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
from hypothesis import strategies as st

from understudy import Constraint

LETTERS = "abcxyz"
names = st.sampled_from(["a", "b", "long name", "é", 'q"'])


def schemas(depth: int = 2) -> st.SearchStrategy[Any]:
    """Schemas of every kind that say how long a text may be."""
    flat = st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": 7}, {"enum": ["x", "yes", 3, None]}]),
        st.tuples(st.integers(-20, 20), st.integers(0, 900)).map(lambda p: {"type": "integer", "minimum": p[0], "maximum": sum(p)}),
        st.tuples(st.integers(0, 2), st.integers(0, 4)).map(lambda p: {"type": "string", "minLength": p[0], "maxLength": sum(p)}),
        st.sampled_from(["^[a-c]{2,4}$", "^(yes|no)[.]$"]).map(lambda pattern: {"type": "string", "pattern": pattern}),
    )
    if not depth:
        return flat
    inner = schemas(depth - 1)
    lists = st.tuples(inner, st.integers(0, 1), st.integers(0, 2)).map(
        lambda p: {"type": "array", "items": p[0], "minItems": p[1], "maxItems": p[1] + p[2]}
    )
    objects = st.dictionaries(names, inner, max_size=3).flatmap(_object)
    return st.one_of(flat, lists, objects, st.lists(inner, min_size=1, max_size=2).map(_any))


def _object(properties: dict[str, Any]) -> st.SearchStrategy[Any]:
    required = st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([])
    fixed = {"type": "object", "properties": properties, "additionalProperties": False}
    return required.map(lambda listed: {**fixed, "required": listed})


def _any(branches: list[Any]) -> dict[str, Any]:
    return {"anyOf": branches}


regexes = st.recursive(
    st.sampled_from(["a", "b", "xy", "[a-c]", ".", "é", r"\.", "[^a]", "[0-9]{1,3}"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{1,3}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=5,
)


@st.composite
def constraints(draw: st.DrawFn) -> Constraint:
    """Any constraint but the free JSON object; a regular expression begins with a letter, since an empty text is refused."""
    kind = draw(st.sampled_from(["schema", "schema", "regex", "choice", "grammar"]))
    if kind == "schema":
        return Constraint.json_schema(draw(schemas()))
    if kind == "regex":
        return Constraint.regex(draw(st.sampled_from(LETTERS)) + draw(regexes))
    if kind == "choice":
        texts = st.text(st.sampled_from('ab"\\\n é'), min_size=1, max_size=6)
        return Constraint.choice(draw(st.lists(texts, min_size=1, max_size=4)))
    return Constraint.grammar(draw(st.sampled_from(['root ::= "(" root ")" | "x"', 'start: "a" start | B\nB: /[0-9]{1,2}/'])))


def fits(constraint: Constraint, text: str) -> bool:
    """Whether `text`, which ended by itself, is what `constraint` says."""
    if constraint.kind == "json_schema":
        return bool(jsonschema_rs.is_valid(json.loads(constraint.text), json.loads(text)))
    if constraint.kind == "regex":
        return re.fullmatch(constraint.text, text) is not None
    if constraint.text.startswith("root"):
        return text == "(" * (len(text) // 2) + "x" + ")" * (len(text) // 2)
    if constraint.text.startswith('start: "a" start'):
        return re.fullmatch("a*[0-9]{1,2}", text) is not None
    return text in json.loads("[" + constraint.text.removeprefix("start: ").replace('" | "', '", "') + "]")
