"""The figures that an answer ends with: tokens as OpenAI counts them, times as llama.cpp names them, and what drafting did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..request import Request
from ..stats import Stats
from .predicted import appeared


def usage(requests: Sequence[Request], reasoning: int = 0) -> dict[str, Any]:
    """Tokens of all answers and of their prompts, of which each different one counts once. reasoning: those of reasoning."""
    # Of equal prompts one is read, and the others copy it.
    cached: dict[tuple[int, ...], int] = {}
    for request in requests:
        prompt = tuple(request.sequence.tokens[: request.sequence.prompt_length])
        cached[prompt] = min(request.sequence.reused, cached.get(prompt, len(prompt)))
    prompt_tokens = sum(map(len, cached))
    new_tokens = sum(request.sequence.produced for request in requests)
    predicted = sum(len(request.sequence.prediction) for request in requests)
    texts = (request.sequence for request in requests)
    accepted = sum(appeared(text.prediction, text.tokens[text.prompt_length :]) for text in texts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(cached.values())},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": predicted - accepted,
        },
    }


def timings(request: Request, stats: Stats) -> dict[str, Any]:
    """How long reading and writing took, in milliseconds, waiting for a place included."""
    read = stats.prompt_tokens - request.sequence.reused
    prompt_ms, new_ms = stats.ttft_seconds * 1e3, stats.decode_seconds * 1e3
    return {
        "cache_n": request.sequence.reused,
        "prompt_n": read,
        "prompt_ms": prompt_ms,
        "prompt_per_second": read / stats.ttft_seconds if stats.ttft_seconds else None,
        "predicted_n": stats.new_tokens,
        "predicted_ms": new_ms,
        "predicted_per_second": stats.tokens_per_second,
        "draft_n": stats.drafted,
        "draft_n_accepted": stats.accepted,
    }


def pace(stats: Stats, request: Request) -> dict[str, Any]:
    """How one answer goes at the moment, beside what drafting did. `row`: its row of the KV cache."""
    return {
        "row": request.sequence.row,
        "tokens": stats.new_tokens,
        "tokens_per_second": stats.tokens_per_second,
        "link_bytes_per_second": stats.link_bytes_per_second,
        "peak_memory_bytes": stats.peak_memory_bytes,
    }


def drafting(stats: Stats) -> dict[str, Any]:
    """What drafting did for one answer. Drafts are trees: compare acceptance lengths, not accepted / drafted."""
    return {
        "method": stats.method,
        "passes": stats.rounds,
        "tokens_per_pass": stats.mean_accepted,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "bytes_streamed": stats.bytes_streamed,
        "seed": stats.seed,
    }
