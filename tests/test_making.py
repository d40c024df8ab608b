"""Requests as they are made: what decides how a text goes on and where it ends is settled before it runs."""

from collections.abc import Iterator

import pytest
import torch

from tests.tiny import save
from understudy import LLM, SamplingParams
from understudy.errors import UsageError
from understudy.making import RequestMaker


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestMaker]:
    path = tmp_path_factory.mktemp("making") / "model"
    save(path, "llama", torch.bfloat16)
    with LLM(path, context=64, rows=1, method="none") as llm:
        yield llm.maker


def test_a_request_ends_at_the_context_at_the_latest(maker: RequestMaker) -> None:
    request = maker.request([1] * 60, SamplingParams(max_new_tokens=50))
    assert request.sequence.limit == 4 and not request.streams
    assert maker.request([1] * 60, SamplingParams(max_new_tokens=3)).sequence.limit == 3
    with pytest.raises(UsageError, match="64 tokens and its reply needs 1 at least, but the context has room for 64"):
        maker.request([1] * 64, SamplingParams())


def test_stop_ids_are_the_models_and_the_callers(maker: RequestMaker) -> None:
    assert maker.stop_ids
    own = maker.request([1], SamplingParams(), stop_ids=[9]).sequence.stop_ids
    assert own == maker.stop_ids | {9}
    assert maker.request([1], SamplingParams(ignore_eos=True), stop_ids=[9]).sequence.stop_ids == {9}


def test_a_chat_ends_where_the_next_turn_begins(maker: RequestMaker) -> None:
    ids = maker.chat_ids([{"role": "user", "content": "hi"}])
    assert maker.tokenizer.decode(ids).endswith("Assistant:")
    for chat, ends in ((True, True), (False, False)):
        request = maker.request(list(ids), SamplingParams(), chat=chat)
        assert any(request.sequence.stops(token) for token in maker.ids("yes\nUser: more")) == ends


def test_work_is_checked_whole_and_in_order(maker: RequestMaker) -> None:
    params = [SamplingParams(seed=1), SamplingParams(seed=2)]
    assert list(maker.checked(["a", [7, 8]], params)) == [(maker.ids("a"), params[0]), ([7, 8], params[1])]
