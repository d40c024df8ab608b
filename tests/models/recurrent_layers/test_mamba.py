"""Mamba-2 and the short convolution: what their layers keep; what is wrong in them is seen by the proof."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import stock
from understudy.models.proving.proof import fault
from understudy.models.recurrent_layers.mamba import FalconMamba2, Mamba2, ShortConvolution
from understudy.models.recurrent_layers.mixer import Mixer
from understudy.models.stock.shape import ModelShape
from understudy.recurrent import RecurrentShape

KEPT = {
    "lfm2": RecurrentShape(64, 3),
    "bamba": RecurrentShape(128 + 2 * 2 * 24, 4, 2, 8, 24, 16),
    "granitemoehybrid": RecurrentShape(128 + 2 * 16, 4, 1, 4, 16, 32),
    "falcon_h1": RecurrentShape(96 + 2 * 2 * 32, 4, 2, 6, 32, 16),
    "nemotron_h": RecurrentShape(96 + 2 * 3 * 20, 4, 3, 6, 20, 16),
}


@pytest.mark.parametrize("family", KEPT)
def test_what_a_layer_keeps_is_read_off_its_config(family: str) -> None:
    model = stock(family)
    layer = ModelShape.of(model.config).layers[0]
    assert layer.recurrent == KEPT[family]
    assert layer.kv_heads == (2 if family == "falcon_h1" else 0)
    convolution = next(module for module in model.modules() if isinstance(module, torch.nn.Conv1d))
    assert convolution.weight.shape == (KEPT[family].channels, 1, KEPT[family].taps)


def test_a_layer_with_a_feed_forward_network_alone_keeps_nothing() -> None:
    layers = ModelShape.of(stock("nemotron_h").config).layers
    assert [(layer.kv_heads, layer.recurrent is not None) for layer in layers] == [
        (0, True), (0, False), (2, False), (0, True), (0, False),
    ]  # fmt: skip


def test_a_step_keeps_within_its_limits() -> None:
    assert fault(stock("bamba", time_step_limit=[0.9, 1.1]).config) is None
    assert fault(stock("nemotron_h", time_step_min=1.2).config) is None


def changed(part: str, by: Any) -> Any:
    """`RuleStep` whose field `part` is changed."""
    from understudy.kernels.recurrence import RuleStep

    def step(query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> RuleStep:
        given = {"query": query, "key": key, "value": value, "decay": decay}
        return RuleStep(**{**given, part: by(given[part])})

    return step


@pytest.mark.parametrize("wrong", ["decay", "value", "groups", "skip", "limits", "convolution", "gate", "fold"])
def test_the_proof_sees_a_mamba_that_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stock("bamba", time_step_limit=[0.9, 1.1]).config
    step, mix = "understudy.models.recurrent_layers.mamba.RuleStep", Mamba2.mix

    def otherwise(self: Any, projected: Tensor) -> Any:
        if wrong == "limits":
            self.shortest, self.longest = 0.0, float("inf")
        else:
            self.D.data.zero_()
        return mix(self, projected)

    if wrong == "decay":
        monkeypatch.setattr(step, changed("decay", lambda decay: decay**1.2))
    elif wrong == "value":
        monkeypatch.setattr(step, changed("value", lambda value: value * 1.1))
    elif wrong == "groups":
        monkeypatch.setattr(step, changed("key", lambda key: key.flip(1)))
    elif wrong in ("skip", "limits"):
        monkeypatch.setattr(Mamba2, "mix", otherwise)
    elif wrong == "convolution":
        monkeypatch.setattr(Mixer, "convolve", lambda self, x, convolution: x)
    elif wrong == "gate":
        monkeypatch.setattr(Mamba2, "gated", lambda self, out, gate: self.norm(out))
    else:
        monkeypatch.setattr("understudy.models.unprepared.fold", lambda state, row, number: None)
    assert fault(config) is not None


def test_the_proof_sees_gates_that_are_exchanged_and_multipliers_that_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(self: Any, hidden_states: Tensor, **_: Any) -> Any:
        after, before, x = self.in_proj(hidden_states).chunk(3, dim=-1)
        return self.out_proj(after * self.convolve(before * x, self.conv))

    with monkeypatch.context() as patch:
        patch.setattr(ShortConvolution, "forward", exchanged)
        assert fault(stock("lfm2").config) is not None
    monkeypatch.setattr(FalconMamba2, "forward", Mamba2.forward)
    assert fault(stock("falcon_h1").config) is not None
