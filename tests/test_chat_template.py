"""A conversation becomes a prompt, or one line says why it cannot: a template is code that may refuse or fail."""

from typing import Any

import pytest

from tests.tiny import byte_tokenizer
from understudy.chat_template import chat_prompt, encode, plain_stops
from understudy.errors import CheckpointError, UsageError

HELLO = [{"role": "user", "content": "Hi"}]
DEMANDING = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}<{{ messages[-1].content }}>"


def rendered(template: Any, messages: Any = HELLO) -> str:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = template
    return str(tokenizer.decode(chat_prompt(tokenizer, messages)))


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"]
)
def test_a_conversation_has_the_tokenizers_form_or_a_plain_one(template: str | None) -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "Hi"}]
    expected = "<user>Hi<assistant>" if template else "User: Hi\nAssistant:"
    assert tokenizer.decode(chat_prompt(tokenizer, messages)) == expected
    assert plain_stops(tokenizer) == (() if template else ("\nUser:",))


@pytest.mark.parametrize(
    ("template", "hint"),
    [
        ("{{ messages }", "line 1"),
        ("a\n{% for %}", "line 2"),
        ("{{ x | nosuch }}", "nosuch"),
        ("{{ messages[0]['content'].nosuch() }}", "nosuch"),
        ("{{ nosuch.x }}", "nosuch"),
        ("{{ messages[7].content.x }}", "faulty"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ 'a' + 1 }}", "faulty"),
        ("{{ messages | map('nosuch') | list }}", "nosuch"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "faulty"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% include 'other' %}", "faulty"),
        ("{% if false %}x{% endif %}", "writes nothing"),
        ({"tool_use": "x", "rag": "y"}, "(rag, tool_use)"),
        ({"default": "{{ messages }"}, "line 1"),
        (3, "no text"),
    ],
    ids=str,
)
def test_a_template_that_cannot_be_used_is_one_line(template: Any, hint: str) -> None:
    with pytest.raises(CheckpointError) as said:
        rendered(template)
    assert hint in str(said.value) and "understudy run" in str(said.value) and "\n" not in str(said.value)


def test_a_template_may_refuse_a_conversation_and_take_another() -> None:
    assert rendered(DEMANDING) == "<Hi>"
    with pytest.raises(UsageError, match="refuses the conversation: No system role"):
        rendered(DEMANDING, [{"role": "system", "content": "Be brief."}, *HELLO])
    assert rendered({"default": DEMANDING, "rag": "{{ messages }"}) == "<Hi>"


@pytest.mark.parametrize("messages", [[], ["Hi"], [{"content": "Hi"}], [{"role": "user"}], "Hi"], ids=str)
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(UsageError, match="role and a content"):
        rendered(None, messages)


def test_a_text_that_the_tokenizer_cannot_take_is_one_line() -> None:
    def picky(text: str) -> dict[str, list[int]]:
        raise ValueError("not this one")

    with pytest.raises(UsageError, match="cannot take this text: not this one"):
        encode(picky, "any")
    with pytest.raises(UsageError, match=r"not valid Unicode: .ud800, half of a character"):
        encode(byte_tokenizer(), "half a pair: \ud800")
    assert encode(byte_tokenizer(), "\U0001f600")


IN_PARTS = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %};{% endfor %}"
)
STRICT = "{% for m in messages %}{{ m.content[0]['type'].upper() }}:{{ m.content[0].text }}{% endfor %}"
EITHER = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text + '!' }}{% endfor %}"


@pytest.mark.parametrize(("template", "expected"), [(IN_PARTS, "user:Hi;"), (STRICT, "TEXT:Hi"), (EITHER, "Hi")])
def test_a_template_for_contents_in_parts_takes_a_text(template: str, expected: str) -> None:
    """Those of multimodal models pass over a plain text, or stumble over it; one that takes it gets it."""
    assert rendered(template) == expected


def test_contents_in_parts_are_left_as_they_are() -> None:
    assert rendered(IN_PARTS, [{"role": "user", "content": [{"type": "text", "text": "Ho"}]}]) == "user:Ho;"


def test_a_plain_conversation_may_go_on_with_its_last_message() -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = None
    begun = [*HELLO, {"role": "assistant", "content": "Hel"}]
    told = chat_prompt(tokenizer, begun, continue_final_message=True, add_generation_prompt=False)
    assert tokenizer.decode(told) == "User: Hi\nAssistant: Hel"
    with pytest.raises(UsageError, match="could be told add_generation_prompt"):
        chat_prompt(tokenizer, begun, add_generation_prompt=False)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"])
def test_a_content_may_come_in_parts_of_text(template: str | None) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert rendered(template, [{"role": "user", "content": parts}]) == rendered(template)
    empty = {"role": "assistant", "content": ""}
    assert rendered(template, [*HELLO, calls]) == rendered(template, [*HELLO, empty]), "what calls tools may say nothing"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": None}, "messages[1]: a content is a text, or a list of parts of type text, got None"),
        ({"role": "user", "content": 5}, "messages[1]: a content is a text, or a list of parts of type text, got 5"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "takes text only, got a part of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages[1]: this model takes text only"),
        ({"role": "user", "content": ["Hi"]}, "messages[1]: this model takes text only, got a part of type None"),
        ({"role": 5, "content": "Hi"}, "messages[1]: a role is a text, such as user, got 5"),
    ],
)
def test_messages_that_are_no_text_are_named_and_not_the_template(message: Any, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        rendered("{{ messages[0].content }}", [*HELLO, message])
    assert said in str(refusal.value)


def test_a_last_message_that_the_template_leaves_out_cannot_be_gone_on_with() -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}"
    begun = [*HELLO, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(UsageError, match="does not write the last message as it is"):
        chat_prompt(tokenizer, begun, continue_final_message=True, add_generation_prompt=False)
