"""A multimodal model is built without the towers that another library would build."""

import pytest
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel

from tests.tiny import wrapper
from understudy.models.proving import proof
from understudy.models.stock.towers import left_out
from understudy.models.stock.wrapper import built


def test_a_tower_of_another_library_is_an_empty_module() -> None:
    model = built(wrapper("gemma3n"))
    assert type(model.model.vision_tower) is nn.Module and not list(model.model.vision_tower.parameters())
    assert list(model.model.audio_tower.parameters()), "other towers are built"


def test_transformers_is_as_it_was_afterwards() -> None:
    before = AutoModel.__dict__["from_config"]
    with pytest.raises(ValueError, match="Unrecognized configuration"), left_out():
        assert type(AutoModel.from_config(CONFIG_MAPPING["timm_wrapper"]())) is nn.Module
        AutoModel.from_config(object())
    assert AutoModel.__dict__["from_config"] is before


@pytest.mark.parametrize("kind", ["fast_vlm", "perception_lm"])
def test_other_kinds_with_such_towers_run(kind: str) -> None:
    config = CONFIG_MAPPING[kind]()
    config.vision_config.model_args = {"embed_dim": 64}
    assert proof.fault(config) is None
