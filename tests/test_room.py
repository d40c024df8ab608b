"""A growing conversation never dies half way: a turn that will not fit is refused before a pass, and what was said stays."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import save
from understudy import LLM, SamplingParams, room
from understudy.cache import Cache
from understudy.errors import RoomError, UsageError
from understudy.layer_states import LayerShape
from understudy.room import LEAST_REPLY, TextRoom

FULL, SLIDING = LayerShape(2, 8, 8), LayerShape(1, 8, 8, window=24)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("room") / "model"
    save(path, "llama", torch.bfloat16)
    with LLM(path, context=200, rows=1) as llm:
        yield llm


@given(tokens=st.integers(1, 300), reply=st.integers(1, 100), chat=st.booleans())
def test_a_text_fits_with_the_least_of_its_reply(tokens: int, reply: int, chat: bool) -> None:
    least = min(reply, LEAST_REPLY) if chat else 1
    found = TextRoom(256, Cache([FULL], 1, 256, torch.bfloat16))
    if tokens + least <= 256:
        found.check(tokens, SamplingParams(max_new_tokens=reply), chat=chat)
        return
    said = f"has {tokens} tokens and its reply needs {least} at least, but the context has room for 256 in all"
    with pytest.raises(RoomError, match=said) as error:
        found.check(tokens, SamplingParams(max_new_tokens=reply), chat=chat)
    assert "--context" in str(error.value) and "\n" not in str(error.value)


def test_tokens_that_must_come_need_room_too() -> None:
    found = TextRoom(256, Cache([FULL], 1, 256, torch.bfloat16))
    found.check(200, SamplingParams(min_tokens=56))
    with pytest.raises(UsageError, match=r"^min_tokens must be at most 56 here"):
        found.check(200, SamplingParams(min_tokens=57))


def test_a_conversation_grows_until_a_turn_is_refused_and_goes_on_from_there(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello there"}]
    params = SamplingParams(max_new_tokens=24, ignore_eos=True)
    with pytest.raises(RoomError, match=r"The conversation has .* send fewer turns or raise --context"):
        for _ in range(20):
            done = llm.chat(messages, params)
            assert done.finish_reason == "length" and len(done.token_ids) >= LEAST_REPLY
            messages += [{"role": "assistant", "content": "x" * 20}, {"role": "user", "content": "go on " * 3}]
    assert len(messages) > 3, "some turns were answered"
    held = llm.model.cache.lengths[0]
    with pytest.raises(RoomError):
        llm.chat(messages, params)
    assert llm.scheduler.idle and llm.model.cache.lengths[0] == held > 0, "what was read and said stays"
    messages[-1] = {"role": "user", "content": "?"}
    shorter = llm.chat(messages, SamplingParams(max_new_tokens=2, ignore_eos=True))
    assert len(shorter.token_ids) == 2 and shorter.stats.read_again == 0


def test_what_texts_have_reached_is_not_needed_again() -> None:
    cache = Cache([FULL, SLIDING], 2, 1024, torch.bfloat16, scratch=0)
    whole = cache.growth(100)
    assert whole == 100 * 2 * (2 * 16 + 16)
    assert cache.growth(2000) == 1024 * 64 + SLIDING.slots(1024) * 32, "a window takes no more than its slots"
    cache._reached = [60, 0]
    assert cache.growth(100) == cache.growth(100, 0) == whole * 40 // 100 and cache.growth(50) == 0
    assert cache.growth(100, 1) == whole, "each row takes its own"
    trees = Cache([FULL, SLIDING], 2, 1024, torch.bfloat16, scratch=32)
    assert trees.growth(100) == cache.growth(132, 1), "trees lie above the text"


def test_a_turn_that_memory_does_not_hold_is_refused_before_a_pass(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = llm.model.cache
    monkeypatch.setattr(cache, "_reached", [0])
    free = cache.growth(60)
    monkeypatch.setattr(room, "spare_bytes", lambda: free)
    said = r"prompt has 30 tokens and its reply up to 31: .* more memory, .* room for 60 tokens"
    with pytest.raises(RoomError, match=said) as error:
        llm.generate([[1] * 30], SamplingParams(max_new_tokens=31))
    assert cache._reached == [0], "no pass was run"
    assert "max_new_tokens" in str(error.value) and error.value.code == "out_of_memory"
    llm.generate([[1] * 30], SamplingParams(max_new_tokens=30, ignore_eos=True))
    assert cache._reached[0] >= 59


def test_on_a_device_all_is_taken_at_once() -> None:
    cache = Cache([FULL], 1, 64, torch.bfloat16, "meta")
    assert cache.growth(64) == 0
