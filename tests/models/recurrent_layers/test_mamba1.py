"""Mamba, the first one: what its layers keep; what is wrong in them is seen by the proof."""

from typing import Any

import pytest
import torch

from tests.models.recurrent_layers.test_channel_steps import forgetting
from tests.tiny import stock
from understudy.models.kept import is_linear
from understudy.models.proving.proof import fault
from understudy.models.recurrent_layers import mamba1
from understudy.models.recurrent_layers.mamba1 import Mamba1, WithoutBias
from understudy.models.stock.shape import ModelShape
from understudy.recurrent import RecurrentShape


def test_what_a_layer_keeps_is_read_off_its_config() -> None:
    layers = ModelShape.of(stock("jamba").config).layers
    assert layers[0].recurrent == RecurrentShape(128, 4, 1, 128, 6, 1, by_channel=True, rated=True)
    assert [layer.kv_heads for layer in layers] == [0, 2, 0, 0]


def test_the_linear_of_steps_is_kept_whole_and_leaves_its_bias_out() -> None:
    linear = torch.nn.Linear(3, 5)
    made, x = WithoutBias.of(linear), torch.randn(2, 3)
    torch.testing.assert_close(made(x) + linear.bias, linear(x))
    assert made.weight is linear.weight and is_linear(linear) and not is_linear(made)


@pytest.mark.parametrize("wrong", ["rates", "skip", "convolution", "norm", "steps"])
def test_the_proof_sees_a_mamba_that_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Mamba1.forward

    def otherwise(self: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        if wrong == "skip":
            self.D.data.zero_()
        self.normed = wrong != "norm"
        return forward(self, hidden_states)

    if wrong == "rates":
        monkeypatch.setattr("understudy.models.target.give_rates", lambda model, states: [
            setattr(state, "rates", -torch.ones(state.shape.value_heads, state.shape.key_size)) for state in states.values()
        ])  # fmt: skip
    elif wrong == "convolution":
        monkeypatch.setattr("understudy.models.recurrent_layers.mixer.Mixer.convolve", lambda self, x, convolution: x)
    elif wrong == "steps":
        monkeypatch.setattr("understudy.models.recurrent_layers.channel_steps.run_steps", forgetting)
    else:
        monkeypatch.setattr(mamba1.Mamba1, "forward", otherwise)
    assert fault(stock("jamba").config) is not None
