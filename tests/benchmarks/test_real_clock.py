"""A drafter that a benchmark watches does all that the drafter does, and its rounds take what is told."""

from typing import Any

import pytest

from real_clock import Costs, Watched
from understudy import LLM, SamplingParams

PROMPT = "def add(a, b):\n"


@pytest.mark.parametrize(("method", "costs"), [("substitute", Costs()), ("substitute", None), ("none", None)])
def test_texts_stay_the_same_and_drafts_are_remembered(method: str, costs: Costs | None) -> None:
    params = SamplingParams(max_new_tokens=24, temperature=0.0)
    with LLM("demo", method=method, memory="1GiB", context=128) as llm:
        engine: Any = llm.engine
        plain = llm.generate(PROMPT, params)[0]
        watched = engine.drafter = Watched(engine.drafter, costs, True)
        again = llm.generate(PROMPT, params)[0]
        assert again.token_ids == plain.token_ids
        assert watched.own_cache is None and len(watched.drafts) == again.stats.rounds
        if method == "none":
            return
        assert sum(draft.accepted for draft in watched.drafts) > 0 and any(draft.ranks for draft in watched.drafts)
        if costs is not None:
            assert watched.pace is not None and watched.pace.total >= again.stats.rounds * costs.level
