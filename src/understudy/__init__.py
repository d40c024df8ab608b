"""Run a language model larger than its memory, exactly, drafted by its own 4-bit copy.

Importing this costs nothing: a name is looked up in its module when it is first asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_llm import AsyncLLM
    from .constraint import Constraint
    from .errors import UnderstudyError, UsageError
    from .llm import LLM, Completion, Step
    from .params import SamplingParams
    from .reasoning import ReasoningBudget
    from .stats import Stats

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "Completion",
    "Constraint",
    "ReasoningBudget",
    "SamplingParams",
    "Stats",
    "Step",
    "UnderstudyError",
    "UsageError",
]

_HOMES = {
    "AsyncLLM": "async_llm",
    "LLM": "llm",
    "Completion": "llm",
    "Constraint": "constraint",
    "ReasoningBudget": "reasoning",
    "Stats": "stats",
    "Step": "llm",
    "SamplingParams": "params",
    "UnderstudyError": "errors",
    "UsageError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
