"""Classes of transformers, imported at first use without the GPU compiler they would bring along where there is no GPU; its errors.

`transformers.modeling_utils` imports torch's compiler, and that imports triton if it is installed: 71 MiB that a CPU never
uses (docs/log.md). Triton is hidden while they are imported; a later `import triton` finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from ...errors import CheckpointError, quoted
from ...startup import hidden


@contextmanager
def refused(what: str, config: Mapping[str, Any], advice: str = "Mend it, or take another model.") -> Iterator[None]:
    """Inside, an error of transformers becomes a CheckpointError of one line: `what`, the value of `config` at fault, and
    `advice`."""
    from huggingface_hub.errors import StrictDataclassError

    with quoted(CheckpointError, what, advice):
        try:
            yield
        except StrictDataclassError as error:
            raise ValueError(" ".join(str(error).split())) from None
        except KeyError as error:
            raise ValueError(_missing(error.args[0] if error.args else None, config)) from None


def _missing(key: Any, config: Mapping[str, Any]) -> str:
    """Why a table has no entry `key`: a value of the config that is not known, or a value that the config should have."""
    nested = [value for value in config.values() if isinstance(value, Mapping)]
    names = [name for table in (config, *nested) for name, value in table.items() if isinstance(key, str) and value == key]
    return f"{names[0]} cannot be {key!r}" if names else f"{key!r} is missing"


def leave_pads_alone(model: Any) -> None:
    """Let no part of the stock `model` look for pads in its input, to warn of them: it is given places in a table, not tokens."""
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            object.__setattr__(module, "warn_if_padding_and_no_attention_mask", lambda *_: None)


@cache
def cache_class() -> Any:
    """The class of transformers' caches."""
    with nullcontext() if torch.cuda.is_available() else hidden("triton"):
        from transformers import Cache
    return Cache


@cache
def base_output_class() -> Any:
    """The class of what a model without its head gives back."""
    with nullcontext() if torch.cuda.is_available() else hidden("triton"):
        from transformers.modeling_outputs import BaseModelOutputWithPast
    return BaseModelOutputWithPast


@cache
def attention_interface() -> Any:
    """The registry of transformers' attention functions."""
    with nullcontext() if torch.cuda.is_available() else hidden("triton"):
        from transformers import AttentionInterface
    return AttentionInterface


@cache
def llama() -> Any:
    """The module of transformers' Llama, whose decoder layers draft heads are made of."""
    with nullcontext() if torch.cuda.is_available() else hidden("triton"):
        from transformers.models.llama import modeling_llama
    return modeling_llama


@cache
def register_attention(name: str, function: Callable[..., Any]) -> str:
    """Make `function` transformers' attention implementation `name`, and return the name."""
    attention_interface().register(name, function)
    return name
