"""Prompts as callers give them: a text, token ids, an array of these, one or many, each with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeGuard

from .errors import UsageError
from .params import SamplingParams

Prompt = str | Sequence[int]


def several(prompts: Prompt | Sequence[Prompt]) -> list[Any]:
    """The prompts one by one; an array or tensor stands for the list it holds. UsageError where there is none."""
    listed: Any = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(listed, str) or (_is_list(listed) and len(listed) and isinstance(listed[0], Integral)):
        return [listed]
    if not _is_list(listed) or not len(listed):
        raise UsageError("There is no prompt: give a text, a list of token ids, or a list of those.")
    return list(listed)


def paired(
    prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[tuple[Any, Any]]:
    """Each prompt with its parameters. UsageError where there is no prompt, or the numbers of the two differ."""
    found = several(prompts)
    one = SamplingParams() if params is None else params
    chosen: list[Any] = list(params) if _is_list(params) else [one] * len(found)
    if len(chosen) != len(found):
        raise UsageError(f"{len(found)} prompts but {len(chosen)} SamplingParams: give one, or one for each.")
    return list(zip(found, chosen, strict=True))


def token_ids(prompt: Sequence[int]) -> list[int]:
    """The token ids of a list, an array or a tensor of them. UsageError for anything else."""
    listed = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not _is_list(listed) or not all(isinstance(token, Integral) for token in listed):
        raise UsageError(f"A prompt is a text or a list of token ids, got {repr(listed)[:80]}.")
    return [int(token) for token in listed]


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))
