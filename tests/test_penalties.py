"""Biases and penalties end to end: the same text with drafting and without, in any batch, and as transformers' generate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests.tiny import opened, save
from understudy import LLM, SamplingParams
from understudy.errors import UsageError

PROMPT = [5, 99, 5, 12, 80, 5, 99, 5]
EOS = 0
EACH: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.4},
    "logit_bias": {"logit_bias": {12: 2.5, 99: -100}},
    "min_tokens": {"min_tokens": 9, "logit_bias": {EOS: 40}},
    "all": {
        "repetition_penalty": 1.2, "presence_penalty": -0.6, "frequency_penalty": 0.4, "logit_bias": {7: 3}, "min_tokens": 12,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("penalties") / "model"
    save(path, "qwen2", torch.bfloat16)
    return path


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", EACH)
def test_each_gives_plain_decodings_text_and_drafts_are_accepted(
    name: str, temperature: float, drafting: LLM, plain: LLM
) -> None:
    params = SamplingParams(temperature=temperature, seed=5, max_new_tokens=40, **EACH[name])
    (expected,) = plain.generate([PROMPT], params)
    (done,) = drafting.generate([PROMPT], params)
    assert done.token_ids == expected.token_ids
    assert done.stats.bytes_streamed > 0
    if name == "min_tokens":
        assert done.token_ids[-1] == EOS and EOS not in done.token_ids[:9]
        assert len(done.token_ids) == 10, "the bias ends the text as soon as it may"
    else:
        (without,) = plain.generate([PROMPT], SamplingParams(temperature=temperature, seed=5, max_new_tokens=40))
        assert done.token_ids != without.token_ids
        assert done.stats.accepted > done.stats.rounds / 2, "the draft is scored as the target is"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_see_the_bias_and_not_the_text_alone(temperature: float, model: Path) -> None:
    """Nothing but the bias speaks for the token, and nothing guesses from the text."""
    with opened(model, method="substitute:guess=off") as llm:
        params = SamplingParams(logit_bias={12: 100}, temperature=temperature, max_new_tokens=40, ignore_eos=True)
        (done,) = llm.generate([PROMPT], params)
    assert done.token_ids == [12] * 40 and done.stats.accepted > 30


@st.composite
def mixed(draw: st.DrawFn) -> tuple[list[int], SamplingParams]:
    prompt = draw(st.lists(st.integers(1, 255), min_size=1, max_size=12))
    chosen: dict[str, Any] = {}
    for name in draw(st.sets(st.sampled_from(list(EACH)))):
        chosen |= EACH[name]
    temperature = draw(st.sampled_from([0.0, 0.0, 0.6, 1.2]))
    count = draw(st.integers(1, 20))
    return prompt, SamplingParams(temperature=temperature, seed=draw(st.integers(0, 9)), max_new_tokens=count, **chosen)


@given(st.lists(mixed(), min_size=1, max_size=5))
@settings(max_examples=5)
def test_any_mix_in_one_batch_is_as_each_alone(drafting: LLM, plain: LLM, asked: list[tuple[list[int], SamplingParams]]) -> None:
    done = drafting.generate([prompt for prompt, _ in asked], [params for _, params in asked])
    for (prompt, params), completion in zip(asked, done, strict=True):
        assert completion.token_ids == plain.generate([prompt], params)[0].token_ids


def test_greedy_text_is_that_of_transformers_defaults_of_the_file_too(tmp_path: Path) -> None:
    save(tmp_path / "model", "llama", torch.float32)
    (tmp_path / "model" / "generation_config.json").write_text('{"repetition_penalty": 1.4, "eos_token_id": 0}')
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    texts = []
    with opened(tmp_path / "model") as llm:
        for given in ({}, {"repetition_penalty": 0.8}, {"repetition_penalty": 1.2, "min_new_tokens": 30}):
            own: dict[str, Any] = {name.replace("new_", ""): value for name, value in given.items()}
            expected = reference.generate(torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, **given)
            (done,) = llm.generate([PROMPT], SamplingParams(max_new_tokens=40, **own))
            texts.append(done.token_ids)
            assert texts[-1] == expected[0, len(PROMPT) :].tolist()
            assert done.stats.accepted > 0
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_a_bias_of_an_unknown_token_is_one_line(plain: LLM) -> None:
    with pytest.raises(UsageError, match="logit_bias names token id 256"):
        plain.generate([PROMPT], SamplingParams(logit_bias={256: 1}))
