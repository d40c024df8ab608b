"""Whatever the batching, every text is the one that plain decoding gives its request alone: bit by bit, on a real model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import generated, save, stock
from understudy import LLM, SamplingParams
from understudy.errors import UsageError
from understudy.frontends.bench.batching import cache_rows
from understudy.rectangle import PaddedCache

# The tiny model's end mark, which is its padding too.
END = 0
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
POLICIES = ("ragged", "eqspec", "exspec")
LENGTHS = (3, 40, 1, 17, 70, 9, 25, 40, 2, 12)
WORK: list[tuple[list[int], SamplingParams]] = [
    (
        [(7 * number + place * place) % 256 for place in range(length)] + [END] * (number % 2) + [5 + number],
        SamplingParams(temperature=(0, 0.6)[number % 2], seed=number, max_new_tokens=1 + 5 * (number % 4), ignore_eos=number > 2),
    )
    for number, length in enumerate(LENGTHS)
]
PROMPTS = [prompt for prompt, _ in WORK]
PARAMS = [params for _, params in WORK]
OPTIONS: dict[str, Any] = {"resident": "none", "memory": "1GiB", "context": 192}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {name: tmp_path_factory.mktemp("identity") / name for name in DTYPES}
    for name, path in paths.items():
        save(path, "llama", DTYPES[name])
    return paths


@pytest.fixture(scope="module")
def plain(models: dict[str, Path]) -> dict[str, list[list[int]]]:
    """The texts of plain decoding, one request after another."""
    found = {}
    for name, path in models.items():
        with LLM(path, method="none", rows=1, **OPTIONS) as llm:
            found[name] = [llm.generate([prompt], [params])[0].token_ids for prompt, params in WORK]
    return found


def opened(model: Path, policy: str, together: int, **options: Any) -> LLM:
    return LLM(model, policy=policy, rows=cache_rows(policy, together), **{**OPTIONS, **options})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_text_is_plain_decodings_in_batches_of_any_size(
    policy: str, dtype: str, models: dict[str, Path], plain: dict[str, list[list[int]]]
) -> None:
    padding = moved = accepted = 0
    for together in (1, 2, 4, 8):
        with opened(models[dtype], policy, together) as llm:
            done = llm.generate(PROMPTS, PARAMS)
            assert [completion.token_ids for completion in done] == plain[dtype], f"{together} together"
            accepted += sum(completion.stats.accepted for completion in done)
            padding += llm.engine.layout.alignment.padding
            moved += llm.engine.layout.alignment.moved
            assert llm.engine.clock.rows > llm.engine.clock.passes or together == 1
            assert isinstance(llm.model.cache, PaddedCache) == (policy != "ragged")
    assert accepted > 0 and (padding > 0) == (moved > 0) == (policy != "ragged")


def test_greedy_float32_is_transformers_own(models: dict[str, Path], plain: dict[str, list[list[int]]]) -> None:
    model = save(models["float32"], "llama", torch.float32)
    greedy = [number for number, params in enumerate(PARAMS) if params.temperature == 0 and params.ignore_eos]
    assert greedy
    for number in greedy:
        assert plain["float32"][number] == generated(model, PROMPTS[number], PARAMS[number].max_new_tokens)


@pytest.fixture(scope="module", params=POLICIES)
def running(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[LLM]:
    with opened(models["bfloat16"], request.param, 4, method="ngram") as llm:
        yield llm


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_requests_come_and_leave_at_any_time(running: LLM, plain: dict[str, list[list[int]]], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(WORK))))
    requests = []
    for number in order:
        for _ in range(data.draw(st.integers(0, 3))):
            running.scheduler.step()
        requests.append(running.request(*WORK[number]))
        running.scheduler.submit(requests[-1])
        if data.draw(st.integers(0, 4)) == 0:
            running.scheduler.cancel(data.draw(st.sampled_from(requests)))
    while not running.scheduler.idle:
        running.scheduler.step()
    for number, request in zip(order, requests, strict=True):
        text = request.sequence.tokens[len(PROMPTS[number]) :]
        assert text == (plain["bfloat16"][number][: len(text)] if request.cancelled else plain["bfloat16"][number])


def test_rows_of_one_length_are_grouped_and_those_of_unlike_lengths_realigned(models: dict[str, Path]) -> None:
    alike = [[number, 1, 2, 3] for number in range(8)]
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    for policy in ("eqspec", "exspec"):
        with opened(models["bfloat16"], policy, 4, method="none") as llm:
            llm.generate(alike, params)
            grouped = llm.engine.layout.alignment
            assert grouped.still == grouped.passes > 0 and grouped.moved == 0
            llm.generate([prompt * (number + 1) for number, prompt in enumerate(alike)], params)
            assert llm.engine.layout.alignment.moved > 0 and llm.engine.layout.alignment.seconds > 0


@pytest.mark.parametrize("policy", ["eqspec", "exspec"])
def test_keys_that_were_moved_are_those_of_a_text_read_anew_whatever_lies_in_the_padding(
    policy: str, models: dict[str, Path], plain: dict[str, list[list[int]]]
) -> None:
    """Positions go by the text, not by the slot; and what padding holds has no share in any softmax."""
    with opened(models["bfloat16"], policy, 4) as llm, LLM(models["bfloat16"], method="none", rows=1, **OPTIONS) as fresh:
        cache = llm.model.cache
        assert isinstance(cache, PaddedCache)
        for state in cache.padded:
            for storage in state.storages:
                storage.fill_(1e4)
        requests = [llm.request(*work) for work in WORK]
        for request in requests:
            llm.scheduler.submit(request)
        audited = 0
        while not llm.scheduler.idle:
            llm.scheduler.step()
            moved = [sequence for sequence in llm.engine.sequences if cache.pads[sequence.row] and sequence.produced > 4]
            for sequence in moved if audited < 3 else ():
                audited += 1
                fresh.generate([sequence.tokens], SamplingParams(max_new_tokens=1))
                length = cache.lengths[sequence.row]
                for state, expected in zip(cache.padded, fresh.model.cache.layers, strict=True):
                    row = state.first(sequence.row)
                    assert torch.equal(state.keys[row, :, :length], expected.keys[0, :, :length])
                    assert torch.equal(state.values[row, :, :length], expected.values[0, :, :length])
        texts = [request.sequence.tokens[len(prompt) :] for request, prompt in zip(requests, PROMPTS, strict=True)]
        assert texts == plain["bfloat16"] and audited > 0


@pytest.mark.parametrize(("family", "context"), [("mistral", 448), ("qwen3_5_text", 192)])
def test_what_no_rectangle_can_hold_is_refused(family: str, context: int, tmp_path: Path) -> None:
    stock(family).config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"The policy eqspec pads rows .* choose ragged"):
        LLM.plan_only(config=tmp_path, policy="eqspec", **{**OPTIONS, "context": context})


def test_realigning_has_room_in_the_plan(models: dict[str, Path]) -> None:
    plans = {policy: LLM.plan_only(models["float32"], policy=policy, rows=8, **OPTIONS) for policy in POLICIES}
    assert plans["ragged"].items["realigning"] == 0 and plans["ragged"].padded_rows == 0
    # Keys of two heads of 16 numbers each, for all columns of all rows.
    assert plans["eqspec"].items["realigning"] == 8 * 192 * 2 * 16 * 4
    assert plans["exspec"].items["realigning"] == 4 * 192 * 2 * 16 * 4
    assert plans["exspec"].padded_rows == 4 and plans["exspec"].rows == 8
