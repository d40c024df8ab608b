"""Every tensor of a checkpoint is used, is known to belong to something else, or is refused by name."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import stock, wrapper
from understudy.errors import CheckpointError
from understudy.models.stock import structure
from understudy.models.stock.aside import left_aside
from understudy.models.stock.names import finder
from understudy.models.streamed import attention_name


def skeleton(config: Any) -> nn.Module:
    return structure.skeleton(config, torch.bfloat16, attention_name())


def aside(config: Any, *names: str, used: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    model = skeleton(config)
    return left_aside(model, finder(model, [*names, *used]), used, whole)


def test_a_mask_within_the_text_model_is_no_weight() -> None:
    """Whole numbers and truth values are left aside, as transformers does; what may be a weight is refused."""
    names = "model.layers.0.self_attn.mask", "model.layers.1.self_attn.bias"
    assert aside(stock("llama").config, *names, whole=names) == {"mask": names[:1], "bias": names[1:]}
    with pytest.raises(CheckpointError, match=r"'model\.layers\.1\.self_attn\.bias' fits nothing in"):
        aside(stock("llama").config, *names, whole=names[:1])


def test_other_parts_of_a_wrapper_by_their_names() -> None:
    tower, projector = "model.vision_tower.layers.0.weight", "model.multi_modal_projector.linear_1.bias"
    assert aside(wrapper("llava"), tower, projector) == {"vision_tower": (tower,), "multi_modal_projector": (projector,)}


def test_parts_under_names_of_before() -> None:
    """llava once kept its tower beside the language model."""
    names = "vision_tower.vision_model.layers.0.weight", "language_model.model.norm.weight"
    assert aside(wrapper("llava"), names[0], used=names[1:]) == {"vision_tower": names[:1]}


def test_a_part_that_the_class_has_no_module_for() -> None:
    names = "mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight", "v_head.weight"
    assert aside(stock("llama").config, *names) == {"mtp": names[:2], "v_head": names[2:]}


def test_layers_that_the_class_itself_leaves_aside() -> None:
    model = skeleton(stock("llama").config)
    model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.61.*"]  # type: ignore[assignment]
    name = "model.layers.61.mlp.up_proj.weight"
    assert left_aside(model, finder(model, [name]), ()) == {"layers.61": (name,)}


def test_layers_after_the_models_own_of_which_its_config_tells() -> None:
    name = "model.layers.3.eh_proj.weight"
    config = stock("llama", num_nextn_predict_layers=1).config
    assert aside(config, name) == {"layers.3": (name,)}
    with pytest.raises(CheckpointError, match=r"'model\.layers\.4\.eh_proj\.weight' fits nothing in"):
        aside(config, "model.layers.4.eh_proj.weight")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_what_a_model_computes_is_in_no_part(name: str) -> None:
    assert aside(stock("llama").config, name) == {}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "layers.2.mlp.strange"),
        ("llama", "model.layers.3.mlp.up_proj.weight"),
        ("llama", "model.other.weight"),
        ("llama", "lm_head.bias"),
        ("llava", "model.language_model.layers.0.mlp.strange.weight"),
        ("llava", "model.strange.weight"),
    ],
)
def test_what_lies_within_the_text_model_and_is_none_of_its_own_is_refused(family: str, name: str) -> None:
    config = wrapper(family) if family == "llava" else stock(family).config
    with pytest.raises(CheckpointError, match="fits nothing in") as refusal:
        aside(config, name)
    assert repr(name) in str(refusal.value) and "\n" not in str(refusal.value)


def test_two_tensors_of_one_name_are_refused() -> None:
    names = "model.norm.weight", "norm.weight"
    with pytest.raises(CheckpointError, match=r"both 'model\.norm\.weight'"):
        aside(stock("llama").config, names[1], used=names[:1])
