"""What a reply must be begins after its reasoning, and calls that it must make are calls of the tools."""

from collections.abc import Sequence

import pytest

from tests.test_text import ids
from tests.tiny import byte_tokenizer
from understudy.api.enforced import Thought, required_calls
from understudy.api.messages import ToolUse
from understudy.constraint import Constraint
from understudy.grammar_compiler import GrammarCompiler
from understudy.replies.families import REASONING, Reasoning

COMPILER = GrammarCompiler(byte_tokenizer(), 256)
FORMS = {
    "schema": (Constraint.json_schema({"type": "integer"}), "12", "x"),
    "regex": (Constraint.regex("[ab]+"), "ab", "c"),
    "grammar": (Constraint.grammar('start: "yes" | "no"'), "no", "maybe"),
}


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def fits(constraint: Constraint, text: str) -> bool:
    """Whether `text` is a beginning of what the constraint allows."""
    state = COMPILER.state(constraint, ())
    tokens: Sequence[int] = ids(text)
    return all(state.allowed(tokens[:place])[token] for place, token in enumerate(tokens))


@pytest.mark.parametrize("reasoning", REASONING, ids=lambda reasoning: reasoning.opened)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_begins_after_the_reasoning(reasoning: Reasoning, form: str) -> None:
    bare, good, bad = FORMS[form]
    thought = f"is it {bad}? < / >\n\n{reasoning.closed}\n\n"
    opened = Thought.of(byte_tokenizer(), reasoning, begun=True).then(bare)
    assert fits(opened, thought + good) and not fits(opened, thought + bad)
    free = Thought.of(byte_tokenizer(), reasoning, begun=False).then(bare)
    begun = f"{reasoning.opened}{reasoning.title}{thought}"
    assert fits(free, good) and fits(free, begun + good) and not fits(free, begun + bad) and not fits(free, bad)


def test_required_calls_are_calls_of_the_tools_with_their_arguments() -> None:
    names = ("f", 'g"é')
    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in names]
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 3}}\n</tool_call>'
    other = '<tool_call>\n{"name": "g\\"é", "arguments": {"a": 3}}\n</tool_call>'
    many = required_calls(ToolUse(tools, True))
    one = required_calls(ToolUse(tools, True, most_calls=1))
    assert fits(many, call) and fits(many, f"{call}\n{other}\n{call}") and fits(one, other)
    assert not fits(one, f"{call}\n{other}")
    for wrong in (call.replace('"f"', '"h"'), call.replace("3", '"3"'), call.replace('"a"', '"b"'), f"Well, {call}"):
        assert not fits(many, wrong)
