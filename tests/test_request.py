"""A request gives its caller a step for each pass with tokens, and all of them joined are the completion."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.advance import Advance
from understudy.params import SamplingParams
from understudy.request import Request
from understudy.sequence import TokenSequence
from understudy.stats import RequestMeter, Share

PLAN = SimpleNamespace(plain_tokens_per_second=None, to_dict=dict)
MODEL: Any = SimpleNamespace(plan=PLAN, device=SimpleNamespace(peak_bytes=lambda: 0))
PROMPT = [5, 6]


class HoldingBack:
    """A reply that gives a token's text out when the next one is known, or the text has ended."""

    def __init__(self) -> None:
        self.text = ""
        self.held: list[int] = []

    def take(self, final: bool = False) -> str:
        ready, self.held = (self.held, []) if final else (self.held[:-1], self.held[-1:])
        decided = "".join(f"{token}." for token in ready)
        self.text += decided
        return decided


def made(streams: bool) -> tuple[Request, HoldingBack]:
    reply: Any = HoldingBack()
    sequence = TokenSequence(0, list(PROMPT), SamplingParams(), prompt_length=len(PROMPT))
    return Request(sequence, reply, RequestMeter(MODEL, "test", len(PROMPT)), streams), reply


def record(request: Request, reply: HoldingBack, tokens: list[int], reason: str | None = None) -> None:
    """One pass that gave `tokens`, as the engine and its `stops` leave it."""
    request.sequence.tokens += tokens
    reply.held += tokens
    request.sequence.finish_reason = reason
    request.record(Advance(request.sequence, tokens, 3, 2, not tokens, 4), Share(used=10))


PASSES = st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=8)


@given(PASSES, st.sampled_from(["stop", "length"]))
def test_the_steps_joined_are_the_completion(passes: list[list[int]], reason: str) -> None:
    passes = [*passes, [1]]
    streaming, other = made(True), made(False)
    for number, tokens in enumerate(passes, 1):
        for request, reply in (streaming, other):
            assert not request.finished
            record(request, reply, tokens, reason if number == len(passes) else None)
    request, steps = streaming[0], list(streaming[0].steps)
    assert not other[0].steps and request.finished and other[0].finished
    assert [step.token_ids for step in steps] == [tokens for tokens in passes if tokens]
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + [reason]
    for done in (request.completion(), other[0].completion()):
        assert done.token_ids == [token for tokens in passes for token in tokens]
        assert done.text == "".join(step.text for step in steps) == "".join(f"{t}." for t in done.token_ids)
        assert done.finish_reason == reason and done.stats.bytes_streamed == 10 * len(passes)
    assert [step.stats.new_tokens for step in steps][-1] == len(request.completion().token_ids)
    assert all((step.drafted, step.accepted) == (3, 2) for step in steps)


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_a_request_that_ends_early_has_what_it_got_so_far_and_no_last_step(error: BaseException | None) -> None:
    request, reply = made(True)
    record(request, reply, [8, 9])
    request.end(error)
    assert request.finished and request.error is error and len(request.steps) == 1
    done = request.completion()
    assert (done.text, done.token_ids, done.finish_reason) == ("8.9.", [8, 9], "cancelled")
