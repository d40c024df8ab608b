"""Gates that are stored row by row between what they gate: they stay as they are, and transformers' own logits come of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import generated, opened, save, wrapper
from understudy import SamplingParams
from understudy.errors import CheckpointError
from understudy.models.proving import proof
from understudy.models.stock import alternating
from understudy.weights.export import export

PROMPT = [(i * i + i // 3) % 90 + 1 for i in range(60)]
KIND = "inkling_mm_model"


def test_texts_are_those_of_transformers_and_files_come_back(tmp_path: Path) -> None:
    """Of a dense layer, of experts, and of shared ones; streamed from a Store and from the checkpoint itself."""
    model = save(tmp_path / "model", KIND)
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert {name.rpartition("layers.")[2] for name in names if "w13" in name} == {
        "0.mlp.w13_dn.weight", "1.mlp.experts.w13_weight", "1.mlp.shared_experts.shared_w13_weight",
        "2.mlp.experts.w13_weight", "2.mlp.shared_experts.shared_w13_weight",
    }  # fmt: skip
    for options in ({}, {"link": True}):
        with opened(tmp_path / "model", **options) as llm:
            done = llm.generate(PROMPT, SamplingParams(max_new_tokens=20, ignore_eos=True))[0]
            export(llm.store, tmp_path / str(len(options)))
        assert done.token_ids == generated(model, PROMPT, 20) and done.stats.accepted > 0 and done.stats.bytes_streamed > 0
        for file in (tmp_path / "model").iterdir():
            assert (tmp_path / str(len(options)) / file.name).read_bytes() == file.read_bytes(), file.name


def test_rows_in_the_order_of_transformers_class_are_no_weight_of_such_a_model(tmp_path: Path) -> None:
    save(tmp_path, KIND, torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    old = next(name for name in tensors if name.endswith("1.mlp.experts.w13_weight"))
    tensors["model.language_model.layers.1.mlp.experts.gate_up_proj"] = tensors.pop(old)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.language_model\.layers\.1\.mlp\.experts\.gate_up_proj'"):
        opened(tmp_path)


@pytest.mark.parametrize("wrong", ["experts", "network"])
def test_a_proof_sees_gates_that_are_taken_otherwise(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gated = alternating._gated

    def otherwise(module: Any, both: Tensor) -> Tensor:
        return gated(module, both.flip(-1)) if hasattr(module, "global_scale") == (wrong == "network") else gated(module, both)

    monkeypatch.setattr(alternating, "_gated", otherwise)
    assert "gives other logits" in str(proof.fault(wrapper(KIND)))
