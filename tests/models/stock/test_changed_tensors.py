"""Routers that are stored transposed, and with those for images: as transformers makes them, when a model is loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import opened, publish
from understudy.errors import CheckpointError
from understudy.models.stock import structure
from understudy.models.stock.changed_tensors import changed_shapes
from understudy.models.stock.configuration import config_of
from understudy.models.stock.names import finder
from understudy.models.streamed import attention_name

LAYER = "model.language_model.layers.1.mlp.text_moe."


def test_what_transformers_turns_and_cuts(tmp_path: Path) -> None:
    stock = publish(tmp_path, "ernie4_5_vl_moe", torch.float32)
    model = structure.skeleton(config_of(tmp_path), torch.float32, attention_name())
    tensors = load_file(tmp_path / "model.safetensors")
    find, stored = finder(model, tensors), "model.layers.1.mlp."
    for name, source, shape in (
        ("gate.weight", "gate.weight", (64, 8)),
        ("gate.moe_statics.e_score_correction_bias", "moe_statics.e_score_correction_bias", (2, 8)),
    ):
        assert changed_shapes(find, LAYER + name, model, tensors) == {stored + source: shape}
        made = find.made(LAYER + name, tensors, model.config)
        assert torch.equal(made, stock.get_parameter(LAYER + name)) and made.is_contiguous() and made.abs().max() > 0
    assert changed_shapes(find, "model.language_model.norm.weight", model, tensors) == {}
    with pytest.raises(CheckpointError, match=r"by Transpose, which gives \[9, 64\], where the config asks for \[8, 64\]"):
        changed_shapes(find, LAYER + "gate.weight", model, tensors | {stored + "gate.weight": torch.empty(64, 9)})


def test_experts_for_images_are_none_of_the_text_models(tmp_path: Path) -> None:
    """They are stored behind those for texts under the same names, and left aside; a model that lacks one of either is named."""
    publish(tmp_path, "ernie4_5_vl_moe", torch.bfloat16)
    model = structure.skeleton(config_of(tmp_path), torch.bfloat16, attention_name())
    tensors = load_file(tmp_path / "model.safetensors")
    names = [f"model.layers.1.mlp.experts.{n}.{half}_proj.weight" for n in range(8) for half in ("gate", "up")]
    find = finder(model, tensors)
    assert find.sources(LAYER + "experts.gate_up_proj") == tuple(names)
    assert "model.language_model.layers.1.mlp.vision_moe" in model.understudy_parts.paths
    with opened(tmp_path, context=128) as llm:
        aside = set(llm.store.extra)
    others = {f"model.layers.1.mlp.experts.{n}.{part}_proj.weight" for n in range(8, 16) for part in ("gate", "up", "down")}
    assert others | {"model.layers.1.mlp.gate.weight_1"} < aside and not set(names) & aside
