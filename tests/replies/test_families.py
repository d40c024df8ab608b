"""Replies as models of each family write them, split the same however the text is grouped."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import byte_tokenizer
from understudy.replies.families import FAMILIES, REASONING
from understudy.replies.format import family_of, format_of
from understudy.replies.splitter import ReplySplitter

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "object"}}}}  # fmt: skip
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": own} for own in (WEATHER, CLOCK)]
# What a call of the weather and one of the clock come to.
PARIS = ("get_weather", '{"city": "Paris", "days": 2}')
NOW = ("clock", "{}")


@dataclass(frozen=True)
class Written:
    """A reply, and what it comes to."""

    family: str
    # What of the chat template tells the family.
    template: str
    reply: str
    calls: tuple[tuple[str, str], ...]
    content: str = ""


ARGUMENTS = '{"city": "Paris", "days": 2}'
JSON = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
CLOCK_JSON = '{"name": "clock", "arguments": {}}'
LLAMA = f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}'
HERMES = f"<tool_call>\n{JSON}\n</tool_call>"
CODER = """I look.

<tool_call>
<function=get_weather>
<parameter=city>
Paris
</parameter>
<parameter=days>
2
</parameter>
</function>
</tool_call>
<tool_call>
<function=clock>
</function>
</tool_call>"""
GLM = """<tool_call>get_weather
<arg_key>city</arg_key>
<arg_value>Paris</arg_value>
<arg_key>days</arg_key>
<arg_value>2</arg_value>
</tool_call>
<tool_call>clock
</tool_call>"""
GEMMA = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:2}<tool_call|><|tool_call>call:clock{}<tool_call|>'
FUNCTION_GEMMA = "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:2}<end_function_call>"
PYTHON = 'get_weather(city="Paris", days=2)'
BARE = 'ipython "parameters"'
REPLIES = [
    Written("hermes", "<tool_call>", HERMES, (PARIS,)),
    Written("hermes", "<tool_call>", f"Let me see.\n{HERMES}\n<tool_call>{CLOCK_JSON}</tool_call>", (PARIS, NOW), "Let me see."),
    Written("hermes", "", HERMES, (PARIS,)),
    Written("qwen3-coder", "<tool_call><function=", CODER, (PARIS, NOW), "I look."),
    Written("glm-4.5", "<tool_call><arg_key>", GLM, (PARIS, NOW)),
    Written("glm-4", "<|observation|>", f"get_weather\n{ARGUMENTS}", (PARIS,)),
    Written("glm-4", "<|observation|>", 'Result\n{"city": "Paris"}', (), 'Result\n{"city": "Paris"}'),
    Written("mistral", "[TOOL_CALLS]", f"[TOOL_CALLS] [{JSON}, {CLOCK_JSON}]", (PARIS, NOW)),
    Written("mistral", "[TOOL_CALLS]", f"So:[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}", (PARIS,), "So:"),
    Written("mistral", "[TOOL_CALLS]", f"[TOOL_CALLS]get_weather{ARGUMENTS}[TOOL_CALLS]clock[CALL_ID]aB3[ARGS]{{}}", (PARIS, NOW)),
    Written("gemma-4", "<|tool_call>", GEMMA, (PARIS, NOW)),
    Written("function-gemma", "<start_function_call>", FUNCTION_GEMMA, (PARIS,)),
    Written("phi-4, granite-3", "<|tool_call|>", f"<|tool_call|>[{JSON}]<|/tool_call|>", (PARIS,)),
    Written("phi-4, granite-3", "<|tool_call|>", f"<|tool_call|>[{JSON}, {CLOCK_JSON}]", (PARIS, NOW)),
    Written("olmo-3", "<function_calls>", f"<function_calls>\n{PYTHON}\nclock()\n</function_calls>", (PARIS, NOW)),
    Written("llama-3", BARE, LLAMA, (PARIS,)),
    Written("llama-3", BARE, f"<|python_tag|>{LLAMA}; {CLOCK_JSON}", (PARIS, NOW)),
    Written("llama-3", BARE, f"[{PYTHON}, clock()]", (PARIS, NOW)),
    Written("llama-3", BARE, '{"name": "Ada", "parameters": {}}', (), '{"name": "Ada", "parameters": {}}'),
    Written("llama-3", BARE, 'The JSON is {"name": "clock"}.', (), 'The JSON is {"name": "clock"}.'),
]


def tokenizer(template: str) -> Any:
    found = byte_tokenizer()
    found.chat_template = template or None
    return found


def split(splitter: ReplySplitter, pieces: list[str], reason: str = "stop") -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Reasoning, content and calls of a reply that comes in pieces."""
    found = [piece for text in pieces for piece in splitter.feed(text)] + splitter.finish(reason)
    told = {kind: "".join(piece.text for piece in found if piece.kind == kind) for kind in ("reasoning", "content")}
    calls = tuple((piece.call.name, piece.call.arguments) for piece in found if piece.call is not None)
    assert splitter.calls == len(calls)
    return told["reasoning"], told["content"], calls


def cut_at(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("written", REPLIES, ids=lambda written: f"{written.family}-{written.reply[:20]}")
@settings(max_examples=8, deadline=None)
@given(places=st.lists(st.integers(0, 400), max_size=12))
def test_each_familys_calls_are_read_however_they_come(written: Written, places: list[int]) -> None:
    own = tokenizer(written.template)
    assert family_of(own).name == written.family
    form = format_of(own, TOOLS)
    assert form is not None
    expected = ("", written.content, written.calls)
    for pieces in (cut_at(written.reply, places), list(written.reply)):
        assert split(ReplySplitter(form), pieces) == expected


def test_every_family_has_a_reply_here() -> None:
    assert {family.name for family in FAMILIES} == {written.family for written in REPLIES}


@pytest.mark.parametrize("marks", REASONING, ids=lambda marks: marks.opened)
@pytest.mark.parametrize("opened", [False, True])
@settings(max_examples=8, deadline=None)
@given(places=st.lists(st.integers(0, 400), max_size=12))
def test_reasoning_is_split_off_whoever_opens_it(marks: Any, opened: bool, places: list[int]) -> None:
    own = tokenizer(f"...{marks.opened}...{marks.closed}...")
    form = format_of(own)
    assert form is not None
    start = f"{marks.opened}{marks.title}"
    reply = f"{'' if opened else start}\nAt last < 3?\n\nYes. \n{marks.closed}\n\nIt is 3.\n"
    expected = ("At last < 3?\n\nYes.", "It is 3.\n", ())
    for pieces in (cut_at(reply, places), list(reply)):
        assert split(ReplySplitter(form, f"<assistant>\n{start}" if opened else "<assistant>\n"), pieces) == expected


def test_a_reply_that_begins_after_its_reasoning_is_content() -> None:
    form = format_of(tokenizer("<think></think>"))
    assert form is not None
    assert split(ReplySplitter(form, "<think>\n\n</think>\n\n"), ["\n3", " it is"]) == ("", "3 it is", ())
