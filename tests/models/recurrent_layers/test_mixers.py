"""The table of recurrent layers: their kinds are told by their configs, and what it does not know is refused."""

import pytest
import torch

from tests.tiny import stock
from understudy.errors import CheckpointError
from understudy.models.recurrent_layers.mixers import layer_values, recurrent_kinds, recurs
from understudy.models.stock import structure
from understudy.models.streamed import attention_name


def test_recurrent_layers_are_told_by_the_config() -> None:
    for family in ("qwen3_5_text", "lfm2", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h"):
        assert recurs(stock(family).config)
    assert not recurs(stock("llama").config) and not recurs(stock("gemma3_text").config)
    kinds = recurrent_kinds(layer_values(stock("bamba").config))
    assert [kind is None for kind in kinds] == [False, True, False]
    other = {"layer_types": ["linear_attention", "full_attention"], "mamba_d_state": 16}
    assert recurrent_kinds(other) == [None, None]


@pytest.mark.parametrize(("family", "linear", "count"), [("qwen3_5_text", "in_proj_qkv", 3), ("falcon_h1", "mamba.in_proj", 3)])
def test_a_pass_uses_every_linear_of_a_mixer_once(family: str, linear: str, count: int) -> None:
    model = structure.skeleton(stock(family).config, torch.float32, attention_name())
    linears = structure.streamed_linears(model)
    order = structure.trace(model, linears).order
    assert set(order) == set(linears) and sum(linear in path for path in order) == count


@pytest.mark.parametrize(("family", "name"), [("qwen3_5_text", "Qwen3_5ForCausalLM"), ("lfm2", "Lfm2ForCausalLM")])
def test_a_recurrent_layer_of_another_class_is_refused(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.models.recurrent_layers.mixers.MIXERS", {})
    with pytest.raises(CheckpointError, match=f"Layer 0 of {name} is recurrent in a way that is not supported"):
        structure.skeleton(stock(family).config, torch.float32, attention_name())
