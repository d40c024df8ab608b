"""Every family in float32: drafted, streamed, from a prepared Store, the tokens are those of transformers' generate."""

from pathlib import Path

import pytest
import torch

from tests.tiny import FAMILIES, generated, save
from understudy import LLM, SamplingParams
from understudy.errors import CheckpointError
from understudy.models import structure

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", family)
    expected = generated(model, PROMPT, 48)
    with LLM(tmp_path / "model", resident="none", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=48, ignore_eos=True))[0]
    assert done.token_ids == expected
    assert done.stats.accepted > 0, "nothing drafted was accepted: the test shows nothing"
    assert done.stats.bytes_streamed > 0
    assert done.stats.rounds < 47


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints(dtype: torch.dtype, tmp_path: Path) -> None:
    save(tmp_path / "model", "qwen3", dtype)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    texts = []
    for method in ("none", "substitute"):
        with LLM(tmp_path / "model", method=method, resident="none", memory="1GiB", context=128) as llm:
            texts.append(llm.generate(PROMPT, params)[0].token_ids)
    assert texts[0] == texts[1] and len(set(texts[0])) > 3


def test_a_half_precision_checkpoint_run_in_float32_is_the_float32_model(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "llama", torch.bfloat16).float()
    with LLM(tmp_path / "model", dtype="float32", memory="1GiB", context=128) as llm:
        done = llm.generate(PROMPT, SamplingParams(max_new_tokens=32, ignore_eos=True))[0]
    assert done.token_ids == generated(model, PROMPT, 32)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 8}, "mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}, "recurrent"),
        ({"model_type": "mamba2"}, "recurrent"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 8}, "text_config": {"hidden_size": 8}}, "multimodal"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_what_cannot_run_exactly_is_refused_by_name(config: dict[str, object], word: str) -> None:
    with pytest.raises(CheckpointError, match=word) as refusal:
        structure.refuse_unsupported(config)
    assert repr(config["model_type"]) in str(refusal.value) and "\n" not in str(refusal.value)
