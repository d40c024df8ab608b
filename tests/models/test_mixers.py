"""Recurrent layers: the mixers give what the stock modules give, and what they do not know is refused."""

import pytest
import torch

from tests.tiny import stock
from understudy.errors import CheckpointError
from understudy.models import structure
from understudy.models.mixers import MIXERS, Mixer, install_mixers, recurs
from understudy.models.proof import fault
from understudy.models.shape import ModelShape
from understudy.models.streamed import attention_name
from understudy.recurrent import RecurrentShape


def test_what_a_layer_keeps_is_read_off_its_config() -> None:
    config = stock("qwen3_5_text").config
    layers = ModelShape.of(config).layers
    assert layers[0].recurrent == RecurrentShape(2 * 32 + 6 * 24, 4, 2, 6, 16, 24) and layers[3].recurrent is None
    assert [layer.kv_heads for layer in layers] == [0, 0, 0, 2]
    assert recurs(config) and not recurs(stock("llama").config)


def test_mixers_take_the_places_of_stock_modules_under_the_same_names() -> None:
    model = stock("qwen3_5_text")
    names = set(model.state_dict())
    install_mixers(model)
    assert sum(isinstance(module, Mixer) for module in model.modules()) == 3 and set(model.state_dict()) == names


def test_a_pass_uses_every_linear_of_a_mixer_once() -> None:
    model = structure.skeleton(stock("qwen3_5_text").config, torch.float32, attention_name())
    linears = structure.streamed_linears(model)
    order = structure.execution_order(model, linears)
    assert set(order) == set(linears) and sum("in_proj_qkv" in path for path in order) == 3


def test_a_recurrent_layer_of_another_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.models.mixers.MIXERS", {})
    with pytest.raises(CheckpointError, match="Layer 0 of Qwen3_5ForCausalLM is recurrent in a way that is not supported"):
        structure.skeleton(stock("qwen3_5_text").config, torch.float32, attention_name())


@pytest.mark.parametrize("wrong", ["decay", "beta", "fold"])
def test_the_proof_sees_a_rule_that_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stock("qwen3_5_text").config
    mixer = MIXERS["Qwen3_5GatedDeltaNet"]
    if wrong == "decay":
        monkeypatch.setattr(mixer, "mix", lambda self, x, a, beta, mix=mixer.mix: mix(self, x, a + 1, beta))
    elif wrong == "beta":
        monkeypatch.setattr(mixer, "mix", lambda self, x, a, beta, mix=mixer.mix: mix(self, x, a, beta * 1.1))
    else:
        monkeypatch.setattr("understudy.models.unprepared.fold", lambda state, row, number: None)
    assert fault(config) is not None
