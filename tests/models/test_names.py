"""A parameter is found under each name that transformers would load it from."""

from typing import Any

import torch
from transformers import AutoConfig

from tests.tiny import COMMON, FAMILIES, generated, save
from understudy import LLM, SamplingParams
from understudy.models import structure
from understudy.models.names import finder
from understudy.models.streamed import attention_name


def test_with_the_bases_prefix_and_without() -> None:
    model = structure.skeleton(AutoConfig.for_model("llama", **COMMON), torch.float32, attention_name())
    find = finder(model, ["norm.weight", "model.layers.0.mlp.up_proj.weight"])
    assert find("model.norm.weight") == "norm.weight"
    assert find("layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert find("lm_head.weight") is None


def test_under_a_name_that_transformers_changes() -> None:
    model = structure.skeleton(AutoConfig.for_model("gpt_neox", **COMMON), torch.float32, attention_name())
    assert finder(model, ["embed_out.weight", "gpt_neox.embed_in.weight"])("lm_head.weight") == "embed_out.weight"


def test_a_head_under_another_name_is_not_taken_for_a_tied_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = save(tmp_path / "model", "gpt_neox", num_key_value_heads=4)
    prompt = [5, 9, 200, 31, 7, 7, 90]
    for method in ("none", "substitute"):
        with LLM(tmp_path / "model", method=method, memory="1GiB", context=128) as llm:
            done = llm.generate(prompt, SamplingParams(max_new_tokens=24, ignore_eos=True))[0]
        assert done.token_ids == generated(model, prompt, 24)


def test_a_parameter_that_transformers_joins_of_several() -> None:
    model = structure.skeleton(config_of_family("olmo_hybrid"), torch.float32, attention_name())
    pieces = tuple(f"model.layers.0.linear_attn.{which}_conv1d.weight" for which in "qkv")
    find = finder(model, [*reversed(pieces), "model.norm.weight"])
    assert find("model.layers.0.linear_attn.conv1d.weight") is None
    assert find.sources("model.layers.0.linear_attn.conv1d.weight") == pieces, "queries, keys, values, in whatever order they lie"
    assert find.sources("model.norm.weight") == ("model.norm.weight",) and find.sources("lm_head.weight") == ()
    assert finder(model, pieces[:2]).sources("model.layers.0.linear_attn.conv1d.weight") == ()


def config_of_family(family: str) -> Any:
    return AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family]})
