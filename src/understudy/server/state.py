"""What the page shows of a server: where everything lies by the plan, and what the engine is at."""

from __future__ import annotations

from typing import Any

from .. import __version__
from ..request import Request
from .metrics import counters, gauges, running
from .places import ServedModel


def state_of(served: ServedModel) -> dict[str, Any]:
    """The plan of a model, the figures of its engine, and the requests that run now, without their texts."""
    llm = served.llm
    return {
        "model": served.settings.model_name,
        "version": __version__,
        "context": llm.context,
        "plan": llm.plan.to_dict(),
        "figures": {**gauges(llm), **counters(llm)},
        "running": [running_text(llm, request) for request in running(llm)],
    }


def running_text(llm: Any, request: Request) -> dict[str, int]:
    """How far a running request is, in tokens: its cache row, its prompt, what that row holds, what was generated."""
    sequence = request.sequence
    return {
        "row": sequence.row,
        "prompt_tokens": sequence.prompt_length,
        "held": llm.engine.cache.lengths[sequence.row],
        "tokens": sequence.produced,
    }
