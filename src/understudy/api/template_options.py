"""What a request tells its chat template besides the messages: values of the template's variables, and nothing else.

What applies a template takes more than that, a template in place of the model's own too. A template is code: one that a client
sends could run without end, in a thread that nothing can stop."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..constraint import check_depth
from .errors import ApiError

FIELD = "chat_template_kwargs"
# Parameters of what applies a template that are variables of templates too.
VARIABLES = frozenset({"add_generation_prompt", "documents"})
# What a request has fields of its own for.
FIELDS = frozenset({"messages", "tools", "continue_final_message"})


def template_options(tokenizer: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The variables in `given`, what a request says in `chat_template_kwargs`.

    Raises ApiError (400) for what is no variable of a template, and UsageError for values that are nested too deep."""
    if not given:
        return {}
    taken = {"self", "conversation", *inspect.signature(tokenizer.apply_chat_template).parameters} - VARIABLES | FIELDS
    if barred := [name for name in given if name in taken]:
        why = "it is a field of the request itself" if barred[0] in FIELDS else "it is no variable of a chat template"
        raise ApiError(400, f"{FIELD} cannot have {barred[0]!r}: {why}.", param=FIELD)
    check_depth(given, FIELD)
    return dict(given)
