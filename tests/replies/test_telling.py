"""Templates are told of tools, calls and results in the way that they know; others in words."""

import json
from typing import Any

import pytest

from tests.replies.test_families import CLOCK, TOOLS, tokenizer
from understudy.chat_template import chat_text
from understudy.replies.telling import told

CALL = {"id": "call_0123456789", "type": "function", "function": {"name": "clock", "arguments": {"zone": "é"}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL], "reasoning": "hm"},
    {"role": "tool", "content": "noon", "tool_call_id": CALL["id"], "name": "clock"},
]


@pytest.mark.parametrize("name", ["tools", "xml_tools"])
def test_a_template_with_a_variable_for_tools_is_given_them(name: str) -> None:
    own = tokenizer(f"{{% if {name} %}}{{{{ {name} | length }}}}{{% endif %}}")
    assert told(own, MESSAGES, TOOLS) == (MESSAGES, {name: TOOLS})
    assert told(own, MESSAGES, ()) == (MESSAGES, {})


@pytest.mark.parametrize("template", ["{{ message['tools'] }}", "{{ message.get('tools') }}", "{{ message.tools }}"])
def test_a_template_that_reads_tools_in_its_system_message_finds_them_there(template: str) -> None:
    for before in ([], [{"role": "system", "content": "Be brief."}]):
        (system, *rest), options = told(tokenizer(template), [*before, *MESSAGES], TOOLS)
        assert options == {} and rest == MESSAGES
        assert system["role"] == "system" and json.loads(system["tools"]) == TOOLS
        assert system["content"] == ("Be brief." if before else "")


@pytest.mark.parametrize("template", ["", "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"])
def test_others_are_told_in_words(template: str) -> None:
    own = tokenizer(template)
    for before in ([], [{"role": "system", "content": "Be brief."}]):
        messages, options = told(own, [*before, *MESSAGES], TOOLS)
        assert options == {}
        text = chat_text(own, messages)
        assert json.dumps(TOOLS[1]) in text and CLOCK["name"] in text
        assert '<tool_call>\n{"name": "clock", "arguments": {"zone": "é"}}\n</tool_call>' in text
        assert messages[-1] == {"role": "user", "content": "<tool_response>\nnoon\n</tool_response>"}
        assert messages[0]["content"].startswith("Be brief.\n\n" if before else "You may call")
    without, _ = told(own, MESSAGES, ())
    assert without[0] == MESSAGES[0] and without[1]["reasoning"] == "hm"


def test_ids_are_short_where_a_template_wants_them_so() -> None:
    own = tokenizer("{% if tools and call.id|length != 9 %}{{ raise_exception('no') }}{% endif %}")
    (_, made, answered), _ = told(own, MESSAGES, TOOLS)
    (call,) = made["tool_calls"]
    assert call["id"] == answered["tool_call_id"] and len(call["id"]) == 9 and call["id"].isalnum()
    assert MESSAGES[1]["tool_calls"] == [CALL]


def test_results_go_into_the_message_that_asked_where_a_template_has_them_there() -> None:
    own = tokenizer("{{ tools }}{{ message['tool_responses'] }}")
    (_, made), _ = told(own, MESSAGES, TOOLS)
    assert made["tool_responses"] == [{"name": "clock", "response": "noon"}]
    own = tokenizer("{{ tools }}{{ message['tool_responses'] }}{% if message['role'] == 'tool' %}{% endif %}")
    assert told(own, MESSAGES, TOOLS)[0] == MESSAGES
