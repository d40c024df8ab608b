"""A request tells its chat template values of variables, and nothing that would change what applies it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from understudy.api.errors import ApiError
from understudy.api.template_options import template_options
from understudy.errors import UsageError

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"


class Applies:
    """A tokenizer, as far as it is asked here."""

    def apply_chat_template(self, conversation: Any, tools: Any = None, chat_template: Any = None, tokenize: bool = True) -> str:
        raise AssertionError("nothing is applied")


@pytest.mark.parametrize("name", ["self", "conversation", "chat_template", "tokenize", "tools", "messages"])
def test_what_is_no_variable_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match=f"chat_template_kwargs cannot have '{name}'") as refused:
        template_options(Applies(), {"enable_thinking": True, name: ENDLESS})
    assert refused.value.status == 400 and refused.value.param == "chat_template_kwargs"


def test_variables_are_told_and_deep_values_are_not() -> None:
    told = {"enable_thinking": False, "add_generation_prompt": False, "documents": [{"text": "x"}]}
    assert template_options(Applies(), told) == told
    assert template_options(Applies(), None) == {}
    with pytest.raises(UsageError, match="chat_template_kwargs is nested deeper than 100 levels"):
        template_options(Applies(), {"a": json.loads("[" * 900 + "]" * 900)})
