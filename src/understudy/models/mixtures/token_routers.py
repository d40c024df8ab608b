"""Routers that send a token to experts by a table of tokens (DeepSeek-V4's first layers): they are told the tokens of the pass.

A pass has only those rows of the embedding table at hand that its tokens need, so what stock code is given as tokens are the
numbers of these rows. The table of experts lies whole in fast memory."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor, nn

from ..kept import is_table

# What the forward of such a router is given.
HIDDEN, TOKENS = "hidden_states", "input_ids"


def tables_of_tokens(module: nn.Module) -> list[str]:
    """The buffers of a router that say by token which experts it goes to: those of whole numbers, where it is given tokens."""
    if not {HIDDEN, TOKENS} <= signature(type(module).forward).parameters.keys():
        return []
    return [name for name, buffer in module.named_buffers(recurse=False) if is_table(buffer)]


def install_token_routers(model: nn.Module) -> None:
    """Let each router of the stock `model` that goes by tokens be told those of the pass under way."""
    for module in model.modules():
        if tables_of_tokens(module):
            object.__setattr__(module, "understudy", None)
            module.register_forward_pre_hook(_told, with_kwargs=True)


def _told(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden: Tensor = given[0] if given else named[HIDDEN]
    if hidden.is_meta:
        return given, named
    tokens: Tensor = module.understudy.under_way.tokens
    return (hidden,), {TOKENS: tokens}
