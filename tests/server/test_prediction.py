"""Predicted outputs: the text is the same, and what was predicted is drafted and accepted more often than what was not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.conftest import Running
from understudy import LLM, SamplingParams
from understudy.server.app import create_app
from understudy.server.settings import Settings

CHAT: list[Any] = [{"role": "user", "content": "def mean(values):"}]


@pytest.fixture(scope="module")
def alone() -> Iterator[LLM]:
    """The built-in model, undrafted: its texts are the same tokens when they are read again."""
    with LLM(method="none", rows=1, context=256) as model:
        yield model


@pytest.fixture(scope="module", params=["substitute", "ngram"])
def drafting(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(method=request.param, rows=1, context=256) as model:
        yield model


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_true_prediction_saves_passes_and_no_prediction_changes_the_text(
    drafting: LLM, alone: LLM, temperature: float
) -> None:
    settings = Settings(model_name="tiny")
    server = Running(create_app(drafting, settings), settings)
    sampling = SamplingParams(max_new_tokens=60, temperature=temperature, seed=4, ignore_eos=True)
    expected = alone.chat(CHAT, sampling).text
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 60, "temperature": temperature, "seed": 4}
    passes = {}
    try:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for told, prediction in (("nothing", None), ("the text", expected), ("another", "a text that does not come at all")):
            extra = {} if prediction is None else {"prediction": {"type": "content", "content": prediction}}
            found = client.chat.completions.create(**asked, **extra, extra_body={"ignore_eos": True})
            assert found.choices[0].message.content == expected
            details = found.usage.completion_tokens_details  # type: ignore[union-attr]
            accepted, rejected = details.accepted_prediction_tokens, details.rejected_prediction_tokens  # type: ignore[union-attr]
            if told == "nothing":
                assert accepted == rejected == 0
            elif told == "the text":
                assert accepted > 40 and rejected < 15
            else:
                assert accepted < rejected
            passes[told] = found.understudy["passes"]  # type: ignore[attr-defined]
    finally:
        server.stop()
    assert passes["the text"] < passes["nothing"]


def test_a_prediction_may_come_in_parts_and_must_be_text(server: Running) -> None:
    body: dict[str, Any] = {"messages": CHAT, "max_tokens": 2}
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    whole = server.post("/v1/chat/completions", **body, prediction={"type": "content", "content": parts})
    assert whole.status_code == 200
    details = whole.json()["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] > 0
    for prediction in ({"type": "image", "content": "x"}, {"type": "content"}, {"type": "content", "content": [{"type": "image"}]}):
        assert server.post("/v1/chat/completions", **body, prediction=prediction).status_code == 400
