"""Calls are read from any value that a model writes, and never half of one."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.replies.calls import ToolCall, calls_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_a_calls_arguments_are_the_same_in_every_form(arguments: dict[str, object]) -> None:
    call = {"name": "f", "arguments": arguments}
    text = json.dumps(call)
    forms = (call, text, [call], f"[{text}]", f" {text}\n", {"function": call}, {"name": "f", "parameters": json.dumps(arguments)})
    for form in forms:
        (found,) = calls_of(form) or ()
        assert found.name == "f" and json.loads(found.arguments) == arguments
    assert calls_of(f"{text}; {text}\n{text}") == [found] * 3


def test_python_calls_are_read_and_nothing_is_run() -> None:
    found = calls_of('f(a=[1, true], b={"c": null})\ng.h()')
    assert found == [ToolCall("f", '{"a": [1, true], "b": {"c": null}}'), ToolCall("g.h", "{}")]
    for text in ("f(1)", "f(**a)", "f(a=open('x'))", "f(a=b)", "f(a=1); x = 2", "f", "import os", "f(a={[]: 1})", "(" * 9999):
        assert calls_of(text) is None


@pytest.mark.parametrize(
    "value", [None, 3, [], "", "text", {}, {"name": ""}, [{"name": "f"}, 3], {"name": "f", "arguments": "3"}, "{"]
)
def test_what_is_no_call_is_none(value: object) -> None:
    assert calls_of(value) is None


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_no_text_is_an_error(text: str) -> None:
    assert calls_of(text) is None or all(call.name for call in calls_of(text) or ())


@pytest.mark.parametrize(
    "text",
    [
        r'{"name": "f", "arguments": {"a": "\ud83d"}}',
        r'{"name": "f", "arguments": {"\udc00": 1}}',
        r'{"name": "f\ud83d", "arguments": {}}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": -Infinity}}',
    ],
)
def test_what_no_answer_could_be_written_with_is_no_call(text: str) -> None:
    assert calls_of(text) is None
    (found,) = calls_of(r'{"name": "f", "arguments": {"a": "\ud83c\udf4e"}}') or ()
    assert json.loads(found.arguments) == {"a": "🍎"}
