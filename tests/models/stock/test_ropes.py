"""Ropes that change with the length of a text: the tokens are those of transformers as far as a text may go."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import generated, save, stock
from understudy import LLM, SamplingParams
from understudy.errors import CheckpointError, UsageError
from understudy.models.stock import structure
from understudy.models.stock.ropes import check_ropes, fix_ropes, for_context, longest_exact

PROMPT = [17, 45, 45, 200, 3, 17, 45, 99, 120, 7, 8, 9, 250, 31, 17, 45, 45]
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8,
    "original_max_position_embeddings": 56, "factor": 4.0,
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 14},
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "rope_theta": 10000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 14,
    },
    "longrope": LONG,
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES)
def test_the_tokens_are_those_of_transformers_to_the_last_position(rope: str, tmp_path: Path) -> None:
    """Drafts look past what is accepted, to the end of the context; the text is told up to its very end, in one pass or many."""
    positions = 224 if rope == "longrope" else 56
    model = save(tmp_path, "llama", rope_parameters=deepcopy(ROPES[rope]), max_position_embeddings=positions)
    wanted = generated(model, PROMPT, 56 - len(PROMPT))
    params = SamplingParams(max_new_tokens=100, ignore_eos=True)
    for method in ("none", "substitute"):
        with LLM(tmp_path, method=method, memory="1GiB") as llm:
            assert llm.plan.context == 56
            done = llm.generate(PROMPT, params)[0]
            assert (done.token_ids, done.finish_reason) == (wanted, "length")
            assert method == "none" or done.stats.accepted > 0
            # what was cached has the frequencies that all later tokens have
            assert llm.generate([*PROMPT, *wanted[:30]], params)[0].token_ids == wanted[30:]


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_long_texts_are_those_of_transformers_and_short_ones_of_its_long_frequencies(family: str, tmp_path: Path) -> None:
    """Of a prompt that is longer than the short frequencies last, transformers takes the long ones for the whole text."""
    sizes = {"max_position_embeddings": 224, **({"original_max_position_embeddings": 56} if family == "phi3" else {})}
    model = save(tmp_path / "model", family, rope_parameters=deepcopy(LONG), **sizes)
    long = deepcopy(LONG) | {"short_factor": LONG["long_factor"]}
    twin = save(tmp_path / "twin", family, rope_parameters=long, **sizes)
    twin.load_state_dict(model.state_dict())
    prompt = PROMPT * 4
    wanted = generated(model, prompt, 100)
    assert generated(twin, prompt, 100) == wanted and generated(model, PROMPT, 20) != generated(twin, PROMPT, 20)
    params = SamplingParams(max_new_tokens=100, ignore_eos=True)
    for method in ("none", "substitute"):
        with LLM(tmp_path / "model", method=method, memory="1GiB", context=224) as llm:
            assert any("longer than 56 tokens, so this model has its frequencies for long texts" in note for note in llm.plan.notes)
            assert llm.generate(prompt, params)[0].token_ids == wanted
            assert llm.generate([*prompt, *wanted[:30]], params)[0].token_ids[:70] == wanted[30:]
            done = llm.generate(PROMPT, SamplingParams(max_new_tokens=20, ignore_eos=True))[0]
            assert done.token_ids == generated(twin, PROMPT, 20)
            assert method == "none" or done.stats.accepted > 0
        with LLM(tmp_path / "model", method=method, memory="1GiB", context=56) as llm:
            assert not any("longrope" in note for note in llm.plan.notes)
            assert llm.generate(PROMPT, params)[0].token_ids == generated(model, PROMPT, 39)


def test_a_longrope_has_its_long_frequencies_for_a_long_context_alone(tmp_path: Path) -> None:
    save(tmp_path, "llama", rope_parameters=deepcopy(LONG), max_position_embeddings=224)
    with pytest.raises(UsageError, match="225 is more than this model's 224 positions"):
        LLM.plan_only(tmp_path, context=225, memory="1GiB")
    for context in (56, 57, 224):
        plan = LLM.plan_only(None, config=tmp_path, dtype="float32", context=context, memory="1GiB")
        assert plan.context == context and any("longrope" in note for note in plan.notes) == (context > 56)
    assert LLM.plan_only(tmp_path, memory="1GiB").context == 56, "not asked for, it stays short"


def test_other_configs_stay_as_they_are() -> None:
    for rope in ROPES:
        config = stock("llama", rope_parameters=deepcopy(ROPES[rope]), max_position_embeddings=224).config
        before = deepcopy(config.rope_parameters)
        assert (for_context(config, 100) is config) == (rope != "longrope")
        assert for_context(config, 56) is for_context(config, None) is config and config.rope_parameters == before
    wide = {**LONG, "short_factor": [1.0] * 16, "long_factor": [3.0] * 16}
    mixed = {"full_attention": wide, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    config = stock("gemma3_text", rope_parameters=mixed, max_position_embeddings=224).config
    own, longer = (each.rope_parameters["full_attention"] for each in (config, for_context(config, 57)))
    assert own["short_factor"] == [1.0] * 16 and longer["short_factor"] == longer["long_factor"] == [3.0] * 16
    assert longest_exact(for_context(config, 57)) == 224 and longest_exact(config) == 56


@pytest.mark.parametrize(
    ("family", "rope"), [("llama", "dynamic"), ("llama", "longrope"), ("phi3", "longrope"), ("gemma3_text", "dynamic")]
)
def test_frequencies_stay_whatever_positions_a_pass_holds(family: str, rope: str) -> None:
    # transformers writes into what it is given
    parameters = deepcopy(ROPES[rope])
    if family == "gemma3_text":
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    config = stock(family, rope_parameters=parameters, max_position_embeddings=56).config
    model = structure.skeleton(config, torch.float32, "eager")
    rotary = next(module for module in model.modules() if hasattr(module, "rope_type"))
    kinds: list[Any] = ["full_attention"] if family == "gemma3_text" else []
    near = torch.arange(8)[None]
    far = torch.arange(300)[None]
    x = torch.zeros(1, 1)
    before = rotary(x, near, *kinds)[0].clone()
    assert torch.equal(rotary(x, far, *kinds)[0][:, :8], before)
    assert torch.equal(rotary(x, near, *kinds)[0], before)


def test_other_ropes_keep_their_name() -> None:
    model = stock("llama", rope_parameters=deepcopy(ROPES["yarn"]))
    fix_ropes(model)
    assert model.model.rotary_emb.rope_type == "yarn"


class Bare:
    """A config of a text model that has ropes alone."""

    def __init__(self, ropes: dict[str, Any] | None):
        self.rope_parameters = ropes

    def get_text_config(self, decoder: bool) -> "Bare":
        return self


def test_how_far_a_text_may_go() -> None:
    assert longest_exact(stock("llama").config) == 512
    assert longest_exact(stock("llama", rope_parameters=deepcopy(LONG)).config) == 56
    assert longest_exact(stock("llama", rope_parameters=deepcopy(ROPES["yarn"])).config) == 512
    assert longest_exact(Bare(None)) is None


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"rope_type": "linear", "factor": "two"}, "factor must be a number above 0, got 'two'"),
        ({"rope_type": "linear", "factor": 0}, "factor must be a number above 0, got 0"),
        ({"full_attention": {"rope_type": "default", "rope_theta": None}}, "rope_theta must be a number above 0, got None"),
        ({"rope_type": None}, "rope_type must be the name of a rope, got None"),
    ],
)
def test_values_that_no_rope_can_have_are_named(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        check_ropes(Bare(parameters), Path("config.json"))
    check_ropes(Bare({"rope_type": "yarn", "factor": None, "rope_theta": 1e4}), Path("config.json"))
