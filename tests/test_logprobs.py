"""Log-probabilities: those of transformers in float32, and the same bits with drafting, in any batch and in any chunks."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.tiny import opened, save
from understudy import LLM, SamplingParams
from understudy.batch import Heads
from understudy.logprobs import TokenLogprob
from understudy.request import Step

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]


@given(st.lists(st.sampled_from([-3.0, 0.5, 0.5, 2.0, 7.25, -torch.inf]), min_size=2, max_size=9), st.integers(0, 12), st.data())
@settings(max_examples=60)
def test_one_row_is_described_whatever_lies_beside_it(values: list[float], count: int, data: st.DataObject) -> None:
    values[data.draw(st.integers(0, len(values) - 1))] = 1.0
    logits = torch.tensor(values, dtype=torch.bfloat16)
    token = data.draw(st.integers(0, len(values) - 1))
    found = TokenLogprob.of(logits, token, count)
    expected = torch.log_softmax(logits.double(), -1)
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert [i for i, _ in found.top] == ranked, "of equal ones the lower id first"
    assert [v for _, v in found.top] == pytest.approx(expected[ranked].tolist(), abs=1e-5)
    assert found.logprob == pytest.approx(float(expected[token]), abs=1e-5)
    assert dict(found.top).get(token, found.logprob) == found.logprob, "bit for bit"
    assert TokenLogprob.of(torch.stack([logits, logits - 1])[0], token, count) == found


def test_tiles_with_logits_stay_within_what_is_planned() -> None:
    heads = Heads(tile=32, most=3)
    assert [heads.tiles(first, count) for first, count in ((0, 32), (0, 33), (31, 1), (31, 2), (64, 0))] == [1, 2, 1, 2, 0]
    for first in range(70):
        for tiles in (1, 2, 3):
            room = heads.room(first, tiles)
            assert heads.tiles(first, room) <= tiles < heads.tiles(first, room + 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logprobs") / "model"
    save(path, "llama", torch.bfloat16)
    return path


@st.composite
def asked(draw: st.DrawFn) -> tuple[list[int], SamplingParams]:
    prompt = draw(st.lists(st.integers(1, 255), min_size=1, max_size=100))
    return prompt, SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.9])),
        seed=draw(st.integers(0, 9)),
        presence_penalty=draw(st.sampled_from([0.0, 1.0])),
        max_new_tokens=draw(st.integers(1, 20)),
        logprobs=draw(st.sampled_from([None, 0, 3])),
        prompt_logprobs=draw(st.sampled_from([None, None, 0, 2])),
    )


@given(st.lists(asked(), min_size=2, max_size=5))
@settings(max_examples=8)
def test_the_same_bits_drafted_or_not_and_in_any_batch(
    drafting: LLM, plain: LLM, work: Sequence[tuple[list[int], SamplingParams]]
) -> None:
    done = drafting.generate([prompt for prompt, _ in work], [params for _, params in work])
    for (prompt, params), completion in zip(work, done, strict=True):
        (alone,) = plain.generate([prompt], params)
        assert completion.token_ids == alone.token_ids
        assert completion.logprobs == alone.logprobs and completion.prompt_logprobs == alone.prompt_logprobs
        assert (completion.logprobs is None) == (params.logprobs is None)
        if completion.logprobs is not None:
            assert [found.token for found in completion.logprobs] == completion.token_ids
        if completion.prompt_logprobs is not None:
            assert [found.token for found in completion.prompt_logprobs] == prompt[1:]


def test_drafted_tokens_have_theirs_step_by_step(drafting: LLM) -> None:
    params = SamplingParams(max_new_tokens=40, logprobs=2, prompt_logprobs=0, ignore_eos=True)
    steps: list[Step] = list(drafting.stream(PROMPT, params))
    assert sum(step.accepted for step in steps) > 0
    for step in steps:
        assert step.logprobs is not None and [found.token for found in step.logprobs] == step.token_ids
        assert all(found.logprob == found.top[0][1] for found in step.logprobs), "greedy: the likeliest, bit for bit"
    assert steps[0].prompt_logprobs is not None and len(steps[0].prompt_logprobs) == len(PROMPT) - 1
    assert all(step.prompt_logprobs is None for step in steps[1:])


def test_a_prompt_is_scored_though_its_beginning_is_held(drafting: LLM, plain: LLM) -> None:
    prompt = [*PROMPT * 6, 7]
    drafting.generate([prompt], SamplingParams(max_new_tokens=2))
    only = SamplingParams(max_new_tokens=0, prompt_logprobs=1)
    (done,) = drafting.generate([prompt], only)
    assert (done.token_ids, done.text, done.finish_reason) == ([], "", "length")
    assert done.prompt_logprobs is not None and len(done.prompt_logprobs) == len(prompt) - 1
    assert done.prompt_logprobs == plain.generate([prompt], only)[0].prompt_logprobs
    assert [step.finish_reason for step in drafting.stream(prompt, only)] == ["length"]


def test_they_are_those_of_transformers(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    prompt = [(7 * i + i * i) % 250 + 1 for i in range(90)]
    params = SamplingParams(max_new_tokens=12, logprobs=3, prompt_logprobs=3, repetition_penalty=1.3, ignore_eos=True)
    with opened(tmp_path / "model") as llm:
        (done,) = llm.generate([prompt], params)
    text = torch.tensor([[*prompt, *done.token_ids]])
    with torch.inference_mode():
        expected = torch.log_softmax(reference(text).logits[0].float(), -1)
    assert done.logprobs is not None and done.prompt_logprobs is not None and done.stats.accepted > 0
    for place, found in enumerate([*done.prompt_logprobs, *done.logprobs]):
        assert found.token == int(text[0, place + 1])
        assert found.logprob == pytest.approx(float(expected[place, found.token]), abs=1e-4)
        best = expected[place].topk(3)
        assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=1e-4)
