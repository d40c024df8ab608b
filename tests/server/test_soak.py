"""A short storm of clients: every answer is the text of the model alone, nobody hangs, and all is given back."""

from __future__ import annotations

import asyncio

from benchmarks.soak import Storm, drained, growth, made_jobs

from tests.server.conftest import Start
from understudy import LLM

PROMPTS = ("one", "The quick brown fox", "a b c d e f g", "one two", "The quick brown dog")


def test_a_storm_of_clients_gets_what_each_would_get_alone(start: Start, llm: LLM, plain: LLM) -> None:
    storm = Storm(start(max_queue=16).url, made_jobs(plain, PROMPTS, "lorem ipsum " * 30))
    asyncio.run(storm.run(clients=24, seconds=8))
    assert storm.failures == []
    assert storm.done["whole"] and storm.done["streamed"] and storm.done["left"] and storm.done["nonsense"]
    assert asyncio.run(drained(storm.url))
    assert llm.scheduler.idle and not llm.engine.sequences


def test_a_wrong_text_is_noticed(start: Start, plain: LLM) -> None:
    jobs = made_jobs(plain, PROMPTS[:1], "a long one")
    storm = Storm(start().url, [job.__class__(job.prompt, job.count + 1, 0.0, job.expected) for job in jobs])
    asyncio.run(storm.run(clients=4, seconds=2))
    assert any("alone it gives" in failure for failure in storm.failures)


def test_growth_is_seen_after_the_warm_up_alone() -> None:
    assert growth([100] * 30 + [1000] * 70) == 0
    assert growth([*range(1000, 2000)]) > 0.4
