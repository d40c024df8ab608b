"""Memory is counted for all texts that run: those that fit one by one, and not together, wait for one another."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams, room
from understudy.cache import Cache
from understudy.errors import RoomError

PARAMS = SamplingParams(temperature=0, max_new_tokens=40, ignore_eos=True)
PROMPTS = [[place + 1] * 40 for place in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("admission") / "model"
    save(path, "llama", torch.bfloat16)
    return path


@pytest.fixture
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, context=200, rows=3) as llm:
        yield llm


def taken(cache: Cache) -> int:
    """Bytes that all rows have taken so far."""
    whole = Cache(cache.shapes, 1, cache.capacity, torch.bfloat16, scratch=0)
    return sum(whole.growth(reached) for reached in cache._reached)


def test_texts_that_fit_one_by_one_wait_for_one_another(llm: LLM, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run one after the other in the same row, whose memory is there by then."""
    with LLM(model, context=200, rows=3) as other:
        expected = [done.token_ids for done in other.generate(PROMPTS, PARAMS)]
    cache, together = llm.model.cache, []
    most = cache.growth(80) * 5 // 4
    monkeypatch.setattr(room, "spare_bytes", lambda: most - taken(cache))
    run = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda sequences: (together.append(len(sequences)), run(sequences))[1])
    assert [done.token_ids for done in llm.generate(PROMPTS, PARAMS)] == expected
    assert set(together) == {1}, "never two at a time"
    assert sum(reached > 0 for reached in cache._reached) == 1, "memory that was taken is used again"


def test_where_memory_holds_all_of_them_they_run_together(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    together = []
    most = llm.model.cache.growth(80) * 3
    monkeypatch.setattr(room, "spare_bytes", lambda: most - taken(llm.model.cache))
    run = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda sequences: (together.append(len(sequences)), run(sequences))[1])
    llm.generate(PROMPTS, PARAMS)
    assert max(together) == 3


def test_a_text_that_memory_no_longer_holds_alone_is_ended_before_it_begins(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    request = llm.request([1] * 30, SamplingParams(max_new_tokens=30))
    monkeypatch.setattr(room, "spare_bytes", lambda: 64)
    with pytest.raises(RoomError, match=r"needs up to .* more memory, and 64 B is free now: ask for a shorter reply") as error:
        llm.scheduler.complete([request])
    assert error.value.code == "out_of_memory" and llm.scheduler.idle
    assert not any(llm.model.cache._reached), "no pass was run"
    monkeypatch.undo()
    assert len(llm.generate([[1] * 30], PARAMS)[0].token_ids) == 40, "the next one is served"
