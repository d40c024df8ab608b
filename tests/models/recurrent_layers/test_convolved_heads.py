"""Convolutions around attention: what layers keep of them; what is wrong in them is seen by the proof."""

from typing import Any

import pytest
from torch import Tensor
from transformers import AutoConfig

from tests.tiny import values_of
from understudy.models.kept import routers
from understudy.models.proving.proof import fault
from understudy.models.recurrent_layers.convolved_heads import AddedConvolution, CompressedConvolution
from understudy.models.recurrent_layers.mixer import Mixer
from understudy.models.stock import structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name
from understudy.recurrent import RecurrentShape


def config_of(family: str, **changes: Any) -> Any:
    return AutoConfig.for_model(**values_of(family, **changes))


def test_what_layers_keep_is_read_off_their_config() -> None:
    layers = ModelShape.of(config_of("zaya")).layers
    assert [layer.recurrent for layer in layers] == [RecurrentShape(96, 3, further=(96, 16))] * 3
    assert [(layer.kv_heads, layer.window) for layer in layers] == [(2, 12), (2, 0), (2, 12)]


def test_all_of_a_router_that_is_a_network_is_kept() -> None:
    import torch

    model = structure.skeleton(config_of("zaya"), torch.float32, attention_name())
    assert len(routers(model)) == 3 * 4
    assert not any(".gate." in path for path in structure.streamed_linears(model))


@pytest.mark.parametrize("family", ["inkling_text", "zaya"])
@pytest.mark.parametrize("wrong", ["convolution", "number"])
def test_a_proof_sees_a_convolution_that_is_wrong(family: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = AddedConvolution if family == "inkling_text" else CompressedConvolution
    convolve, behind = kind.convolve, Mixer.behind

    def otherwise(self: Any, x: Tensor, convolution: Any, number: int = 0, **how: Any) -> Tensor:
        return x if wrong == "convolution" else convolve(self, x, convolution, min(number, 1), **how)

    monkeypatch.setattr(kind, "convolve", otherwise)
    if wrong == "number" and family == "zaya":
        monkeypatch.setattr(Mixer, "behind", lambda self, x, back, number: behind(self, x, back + 1, number))
    assert fault(config_of(family)) is not None


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"cca_time0": 4, "cca_time1": 2}, {"cca_time1": 1}])
def test_other_lengths_and_biases_are_those_of_transformers(changes: dict[str, Any]) -> None:
    assert fault(config_of("zaya", **changes)) is None
