"""A conversation is planned as a person says it, and nothing that was said is left out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import UsageError
from understudy.plan.conversation import TEMPLATE, Conversation


@settings(max_examples=30)
@given(*(st.integers(1, 10**4) for _ in range(4)), st.integers(0, 100))
def test_all_that_is_said_counts(turns: int, prompt: int, reply: int, clients: int, template: int) -> None:
    text = f"reply={reply},turns={turns},clients={clients},prompt={prompt},template={template}"
    found = Conversation.parse(text, "--chat")
    assert found == Conversation(turns, prompt, reply, clients, template)
    assert found.tokens == turns * (prompt + reply + template)
    assert found == Conversation.parse(text.replace(",", ", "), "--chat")
    assert found.turns_within(found.tokens) == turns and found.turns_within(found.tokens - 1) == turns - 1


def test_one_client_and_a_template_are_taken_where_nobody_says() -> None:
    found = Conversation.parse("turns=2,prompt=3,reply=4", "--chat")
    assert found.clients == 1 and found.tokens == 2 * (7 + TEMPLATE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "turns and prompt and reply must be given"),
        ("turns=2,prompt=3", "--plan-for turns=2,prompt=3: reply must be given"),
        ("turns=0,prompt=3,reply=4", "turns must be given once, as a whole number of 1 or more"),
        ("turns=two,prompt=3,reply=4", "turns must be given once"),
        ("turns=2,turns=3,prompt=3,reply=4", "turns must be given once"),
        ("turns=2,promt=3,reply=4", "prompt"),
        ("turns=0,prompt=3,reply=4", "^--plan-for turns=0,prompt=3,reply=4: turns"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        Conversation.parse(text, "--plan-for")
    assert "\n" not in str(error.value)
