"""Attention with a bias by distance: stock code makes it of each distance, attention takes what a position says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.tiny import opened, save, values_of
from understudy.devices import DEVICES
from understudy.errors import CheckpointError, UsageError
from understudy.models.proving import proof
from understudy.models.stock import near_bias, structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name


class Biased(nn.Module):
    """Of the published form: profiles of as many distances as it says."""

    def __init__(self, extent: int) -> None:
        super().__init__()
        self.rel_extent, self.proj = extent, nn.Parameter(torch.randn(4, 6))

    def forward(self, *given: Any) -> str:
        return "stock"


def test_a_bias_is_made_of_each_distance_row_by_row() -> None:
    module, other = Biased(6), Biased(5)
    assert near_bias.install_near_bias(nn.Sequential(module, other)) == 1 and other() == "stock"
    states = torch.randn(1, 40, 3, 4)
    found = module(states, None, None)
    assert found.shape == (1, 3, 40, 6) and torch.allclose(found[0], states[0].transpose(0, 1) @ module.proj, atol=1e-5)
    # no other row has a part in it
    assert torch.equal(module(states[:, 7:8], None, None)[0, :, 0], found[0, :, 7])
    module.proj = nn.Parameter(2 * module.proj.detach())
    assert torch.allclose(module(states, None, None), 2 * found)
    given = near_bias.bias_given(module, found)
    assert given is not None and given.shape == (40, 3, 6) and near_bias.bias_given(module, None) is None
    with pytest.raises(CheckpointError, match="adds a bias to its scores in a way that is not supported"):
        near_bias.bias_given(nn.Linear(2, 2), found)


def test_what_layers_keep_and_how_far_their_bias_goes() -> None:
    config = AutoConfig.for_model(**values_of("inkling_text"))
    shape = ModelShape.of(config)
    assert [layer.extent for layer in shape.layers] == [12, 20, 12] and shape.extent == 20
    assert [(layer.kv_heads, layer.key_size, layer.window) for layer in shape.layers] == [(3, 24, 12), (2, 16, 0), (3, 24, 12)]
    assert [layer.recurrent.further for layer in shape.layers if layer.recurrent] == [(72, 64, 64), (32, 64, 64), (72, 64, 64)]
    assert shape.heads == 6 and shape.vocabulary == 250
    structure.check_structure(structure.skeleton(config, torch.float32, attention_name()))


def test_a_bias_by_distance_is_for_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "inkling_text", torch.bfloat16)
    monkeypatch.setitem(DEVICES, "fake", "tests.fake_device:open_fake")
    with pytest.raises(UsageError, match="adds a bias by how far a token lies back, which runs on the processor alone"):
        opened(tmp_path, device="fake")


@pytest.mark.parametrize("wrong", ["later", "scaled"])
def test_a_proof_sees_another_bias(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, given = AutoConfig.for_model(**values_of("inkling_text")), near_bias.bias_given

    def otherwise(module: nn.Module, bias: Tensor | None) -> Tensor | None:
        found = given(module, bias)
        return found if found is None else found.roll(1, -1) if wrong == "later" else found * 1.3

    assert proof.fault(config) is None
    monkeypatch.setattr(near_bias, "bias_given", otherwise)
    assert "gives other logits" in str(proof.fault(config))
