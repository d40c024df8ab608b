"""Models with recurrent layers: the text is the same drafted or not, in any batch and chunks, and wherever a row goes back."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fake_device, trained
from tests.fake_device import FakeDevice
from tests.tiny import generated, save
from understudy import LLM, SamplingParams
from understudy.devices import DEVICES
from understudy.drafters.search import SearchDrafter
from understudy.errors import TransferError, UsageError
from understudy.heads import TargetFacts
from understudy.heads.files import built
from understudy.heads.files import save as save_head
from understudy.recurrent import DEEPEST

FAMILIES = ["qwen3_5_text", "lfm2", "falcon_h1", "kimi_linear", "jamba", "qwen4_exp_text"]
# Of these: those that run on no other device so far.
ALONE = ("qwen4_exp_text",)
TEXT = [(i * i * 7 + i // 3) % 251 for i in range(760)]
PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)
FEW = SamplingParams(max_new_tokens=12, ignore_eos=True)
# Lengths of prompts that are drawn oftener than others: at the ends of folds and of chunks.
ENDS = (1, 2, 9, 64, 65, 118, 127, 128, 129, 200, 246, 256, 257, 300, 385, 400)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny float32 checkpoint that remembers for long, and its stock model."""
    place = tmp_path_factory.mktemp(request.param) / "model"
    return place, save(place, request.param, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def plain(checkpoint: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """The same in bfloat16, and it undrafted with one sequence."""
    place = tmp_path_factory.mktemp("half") / "model"
    save(place, checkpoint[1].config.model_type, torch.bfloat16, max_position_embeddings=2048)
    with LLM(place, method="none", resident="none", memory="1GiB", context=1024, rows=1) as llm:

        @cache
        def told(prompt: tuple[int, ...], params: SamplingParams) -> list[int]:
            return llm.generate(list(prompt), params)[0].token_ids

        yield place, lambda prompt, params=PARAMS: told(tuple(prompt), params)


def test_texts_that_share_a_beginning_and_go_back(checkpoint: tuple[Path, Any]) -> None:
    place, model = checkpoint
    with LLM(place, resident="none", memory="1GiB", context=1024, rows=1) as llm:
        again = []
        for prompt, count in ((TEXT[:300], 100), ([*TEXT[:290], 3, 5, 7], 9), ([*TEXT[:90], 11, 13], 9), (TEXT[:500], 9)):
            done = llm.generate(prompt, SamplingParams(max_new_tokens=count, ignore_eos=True))[0]
            assert done.token_ids == generated(model, prompt, count)
            assert done.stats.accepted > 0, "nothing drafted was accepted: the test shows nothing"
            again.append(done.stats.read_again)
        # a second turn may leave out what was generated: only the tokens since the last fold are read again
        assert again == [0, 290 - 256, 90, 0]
        reply = llm.generate(TEXT[:500], PARAMS)[0]
        assert llm.generate([*TEXT[:500], *reply.token_ids, 9, 9], PARAMS)[0].stats.read_again == 0


@pytest.mark.parametrize("method", ["substitute", "substitute:width=3,depth=5", "ngram:length=48,match=1", "none"])
def test_half_precision_text_is_the_same_however_it_is_drafted(method: str, plain: tuple[Path, Any]) -> None:
    place, expected = plain
    repeated = (TEXT[:40] * 4)[:150]
    with LLM(place, method=method, resident="none", memory="1GiB", context=1024, rows=3) as llm:
        prompts = [repeated, TEXT[:61], TEXT[100:228]]
        params = SamplingParams(max_new_tokens=80, ignore_eos=True)
        done = llm.generate(prompts, params)
        assert [each.token_ids for each in done] == [expected(prompt, params) for prompt in prompts]
        assert method == "none" or sum(each.stats.accepted for each in done) > 0


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_half_precision_text_is_the_same_in_any_company_and_any_chunks(data: st.DataObject, plain: tuple[Path, Any]) -> None:
    place, expected = plain
    with LLM(place, resident="none", memory="1GiB", context=1024, rows=3) as llm:
        for _ in range(2):
            llm.engine.max_nodes = data.draw(st.sampled_from([130, 200, 1000]))
            ends = data.draw(st.lists(st.sampled_from(ENDS) | st.integers(1, 400), min_size=1, max_size=4))
            prompts = [TEXT[:end] for end in ends]
            done = llm.generate(prompts, FEW)
            assert [each.token_ids for each in done] == [expected(prompt, FEW) for prompt in prompts]


def test_a_pass_that_fails_and_a_text_that_is_left(plain: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    place, expected = plain
    with LLM(place, resident="none", memory="1GiB", context=1024, rows=1) as llm:
        llm.engine.max_nodes = 150
        steps = llm.stream(TEXT[:100], PARAMS)
        next(iter(steps))
        steps.close()
        supply = llm.model.supply
        multiply = supply.multiply
        for fails_at in (3, 17, 40):
            calls = [0]

            def failing(index: int, tiles: Any, rows: int, calls: list[int] = calls, at: int = fails_at) -> Any:
                calls[0] += 1
                if calls[0] == at:
                    raise TransferError("no weights")
                return multiply(index, tiles, rows)

            monkeypatch.setattr(llm.model.target, "multiply", failing)
            with pytest.raises(TransferError):
                llm.generate(TEXT[:430], PARAMS)
            monkeypatch.setattr(llm.model.target, "multiply", multiply)
            assert llm.generate(TEXT[:430], PARAMS)[0].token_ids == expected(TEXT[:430])


def test_no_tree_is_deeper_than_folded_states_reach(plain: tuple[Path, Any]) -> None:
    place, expected = plain
    params = SamplingParams(max_new_tokens=150, ignore_eos=True)
    with LLM(place, resident="none", memory="1GiB", context=1024, rows=1) as llm:
        deepest = 0
        begin = llm.model.cache.begin_pass

        def noting(nodes: Any) -> None:
            nonlocal deepest
            if not bool((nodes.slots == nodes.positions).all()) or len(nodes) < 100:
                deepest = max(deepest, int(nodes.positions.max()) - llm.model.cache.lengths[0])
            begin(nodes)

        llm.model.cache.begin_pass = noting  # type: ignore[method-assign]
        llm.model.filling = lambda: True  # type: ignore[method-assign]
        drafter = llm.engine.drafter
        drafter.policy.limits.__dict__["filling"] = lambda: True  # type: ignore[attr-defined]
        assert llm.generate(TEXT[:100], params)[0].token_ids == expected(TEXT[:100], params)
    assert 8 < deepest <= DEEPEST


def test_a_second_model_without_states_drafts_no_deeper(plain: tuple[Path, Any], tmp_path: Path) -> None:
    place, expected = plain
    save(tmp_path, "llama", torch.bfloat16, max_position_embeddings=2048)
    with LLM(place, method=f"classic:{tmp_path}", resident="none", memory="1GiB", context=1024, rows=1) as llm:
        drafter: Any = llm.engine.drafter
        assert drafter.proposer.deepest > DEEPEST == drafter.policy.limits.levels
        assert llm.generate(TEXT[:100], PARAMS)[0].token_ids == expected(TEXT[:100])


@pytest.mark.parametrize("triton", [True, False])
def test_a_device_with_memory_of_its_own_writes_the_same_text(
    triton: bool, checkpoint: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place, model = checkpoint
    if model.config.model_type in ALONE:
        pytest.skip("runs on the processor alone")
    monkeypatch.setattr(fake_device, "open_fake", partial(FakeDevice, triton=triton))
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    # the kernels' interpreter is slow
    monkeypatch.setattr(SearchDrafter, "warm", lambda self: None)
    options: dict[str, Any] = {"codec": "raw", "device": "fake", "context": 512, "rows": 1, "memory": "1GiB"}
    if triton:
        options["method"] = "substitute:width=2,depth=2"
    with LLM(place, resident="none", **options) as llm:
        # the kernels' interpreter is slow: that levels are recorded is seen in a short text, folds in a long one
        prompt, count = (TEXT[:9], 5) if triton else (TEXT[:124], 12)
        done = llm.generate(prompt, SamplingParams(max_new_tokens=count, ignore_eos=True))[0]
        assert done.token_ids == generated(model, prompt, count)
        assert done.stats.accepted > 0
        assert not triton or llm.engine.drafter.search.replayed > 0  # type: ignore[attr-defined]
        assert not done.stats.suggested, "no level of its states holds a node and its parent"
    if triton:
        return
    # What is refused does not depend on who makes the kernels.
    with pytest.raises(UsageError, match=r"guess=on is not for models with recurrent layers that draft on fake: leave it out\."):
        LLM(place, resident="none", **options | {"method": "substitute:guess=on"})
    head = trained.config("medusa", target=TargetFacts(model.config.hidden_size, model.config.vocab_size))
    save_head(built(head), tmp_path)
    with pytest.raises(UsageError, match=r"suggest= is not for models with recurrent layers that draft on fake: leave it out\."):
        LLM(place, resident="none", **options | {"method": f"substitute:suggest=medusa:{tmp_path}"})
