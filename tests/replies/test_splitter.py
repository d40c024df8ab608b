"""A reply keeps every character that is not a mark, and tokens of reasoning are counted."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replies.test_families import JSON, PARIS, TOOLS, split, tokenizer
from tests.test_text import ids
from tests.tiny import byte_tokenizer
from understudy.errors import CheckpointError
from understudy.replies.format import ReplyFormat, format_of
from understudy.replies.splitter import ReplySplitter
from understudy.text import TextStream


def hermes(tools: Any = TOOLS) -> ReplyFormat:
    form = format_of(tokenizer("<think></think><tool_call>"), tools)
    assert form is not None
    return form


@pytest.mark.parametrize(
    "reply",
    [
        "<tool_call>\n{not json}\n</tool_call> after",
        'so <tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "clock", "arguments": {"a": NaN}}</tool_call>',
        f"<tool_call>{'[' * 5000}</tool_call>",
        "<tool_call></tool_call>x",
        "text with <tool and </tool_call> in it",
    ],
    ids=lambda reply: reply[:40],
)
def test_what_is_no_call_stays_text(reply: str) -> None:
    assert split(ReplySplitter(hermes()), [reply]) == ("", reply, ())
    assert split(ReplySplitter(hermes()), list(reply)) == ("", reply, ())


def test_a_call_that_the_length_cuts_off_is_text() -> None:
    for cut in (f"<tool_call>{JSON[:-5]}", f"<tool_call>{JSON}"):
        assert split(ReplySplitter(hermes()), [cut], "length") == ("", cut, ())
    coder = format_of(tokenizer("<tool_call><function="), TOOLS)
    assert coder is not None
    cut = "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar"
    assert split(ReplySplitter(coder), [cut], "length") == ("", cut, ())


def test_a_call_that_the_model_does_not_close_is_a_call() -> None:
    assert split(ReplySplitter(hermes()), [f"<tool_call>{JSON}"]) == ("", "", (PARIS,))


def test_without_tools_calls_are_text() -> None:
    reply = f"<tool_call>{JSON}</tool_call>"
    assert split(ReplySplitter(hermes(tools=())), [reply]) == ("", reply, ())
    assert format_of(tokenizer("<tool_call>")) is None


def test_one_call_at_most_where_it_is_asked_for() -> None:
    reply = f"<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}</tool_call>"
    assert split(ReplySplitter(hermes(), most_calls=1), [reply]) == ("", "", (PARIS,))


def test_arguments_take_the_types_of_the_tools_schema() -> None:
    form = format_of(tokenizer("<tool_call><arg_key>"), TOOLS)
    assert form is not None
    values = {"city": "12", "days": "12", "units": '{"t": "C"}'}
    pairs = "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in values.items())
    (call,) = split(ReplySplitter(form), [f"<tool_call>get_weather{pairs}</tool_call>"])[2]
    assert call == ("get_weather", '{"city": "12", "days": 12, "units": {"t": "C"}}')


def test_a_tokenizers_own_response_template_comes_first() -> None:
    own = tokenizer("<think></think>")
    own.response_template = {
        "start_anchor": "<bot>",
        "fields": {
            "thinking": {"open": ["<why>", "<because>"], "close": "</why>", "content": "text"},
            "tool_calls": {
                "open_pattern": r"<do (?P<name>\w+)>",
                "close_pattern": r"</do>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"content": "text"},
        },
    }
    form = format_of(own, TOOLS)
    assert form is not None and form.finds_start
    reply = 'so</why>Well <do get_weather>{"city": "Paris", "days": 2}</do><do get_weather>{</do>'
    assert split(ReplySplitter(form, "<why>no</why><bot><why>"), [reply]) == ("so", "Well <do get_weather>{", (PARIS,))
    assert split(ReplySplitter(form, "<why>no</why><bot><why>"), list(reply)) == ("so", "Well <do get_weather>{", (PARIS,))


@pytest.mark.parametrize(
    "faulty",
    [{"fields": {}}, {"fields": {"content": {"open_pattern": "("}}}, {"fields": {"a": {}, "b": {}}}, "text", {"fields": {"a": 3}}],
    ids=str,
)
def test_a_faulty_response_template_is_one_line(faulty: Any) -> None:
    own = tokenizer("x")
    own.response_template = faulty
    with pytest.raises(CheckpointError, match="response template of this model is faulty"):
        form = format_of(own)
        assert form is not None
        ReplySplitter(form)


@settings(max_examples=25, deadline=None)
@given(thought=st.text("ab é<\n", max_size=12), answer=st.text("xy é<", max_size=8), opened=st.booleans(), pace=st.integers(1, 7))
def test_tokens_of_reasoning_are_counted_alike_in_any_grouping(thought: str, answer: str, opened: bool, pace: int) -> None:
    start = "" if opened else "<think>"
    thought = f"a{thought}"
    reply = f"{start}{thought}</think>{answer}"
    stream = TextStream(byte_tokenizer())
    splitter = ReplySplitter(hermes(), "<think>" if opened else "")
    tokens = ids(reply)
    for place, token in enumerate(tokens):
        stream.feed(token)
        if place % pace == 0:
            splitter.feed(stream.take())
    splitter.feed(stream.take(final=True))
    splitter.finish("stop")
    # one token for each byte; blanks before the closing mark belong to it
    counted = splitter.reasoning_tokens(stream.text, stream.ends)
    assert counted == len(thought.rstrip().encode())
    assert stream.text == reply
