"""The gated delta rule: what its layers keep, and a rule that is wrong is seen by the proof."""

import pytest

from tests.tiny import stock
from understudy.models.proving.proof import fault
from understudy.models.recurrent_layers.gated_delta import GatedDelta, Qwen3NextGatedDelta, Qwen35GatedDelta
from understudy.models.stock.shape import ModelShape
from understudy.recurrent import RecurrentShape


def test_what_a_layer_keeps_is_read_off_its_config() -> None:
    layers = ModelShape.of(stock("qwen3_5_text").config).layers
    assert layers[0].recurrent == RecurrentShape(2 * 32 + 6 * 24, 4, 2, 6, 16, 24) and layers[3].recurrent is None
    assert [layer.kv_heads for layer in layers] == [0, 0, 0, 2]
    assert ModelShape.of(stock("qwen3_next").config).layers[0].recurrent == RecurrentShape(2 * 32 + 4 * 24, 4, 2, 4, 16, 24)


@pytest.mark.parametrize(("family", "mixer"), [("qwen3_5_moe_text", Qwen35GatedDelta), ("qwen3_next", Qwen3NextGatedDelta)])
def test_mixtures_with_such_layers_are_proved(family: str, mixer: type[GatedDelta], monkeypatch: pytest.MonkeyPatch) -> None:
    """And a projection that is taken apart otherwise is seen: what belongs to a head of keys lies side by side in Qwen3-Next."""
    config = stock(family).config
    assert fault(config) is None
    mix = mixer.mix
    monkeypatch.setattr(mixer, "mix", lambda self, x, a, beta: mix(self, x, a.flip(-1), beta))
    assert fault(config) is not None


@pytest.mark.parametrize("wrong", ["decay", "beta", "fold"])
def test_the_proof_sees_a_rule_that_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stock("qwen3_5_text").config
    mix = Qwen35GatedDelta.mix
    if wrong == "decay":
        monkeypatch.setattr(Qwen35GatedDelta, "mix", lambda self, x, a, beta: mix(self, x, a + 1, beta))
    elif wrong == "beta":
        monkeypatch.setattr(Qwen35GatedDelta, "mix", lambda self, x, a, beta: mix(self, x, a, beta * 1.1))
    else:
        monkeypatch.setattr("understudy.models.unprepared.fold", lambda state, row, number: None)
    assert fault(config) is not None
