"""Blocks that layers share: every use is a block by itself, of the same tensors and with adapters of its own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig

from tests.tiny import generated, opened, save, values_of
from understudy import SamplingParams
from understudy.models.proving.proof import fault
from understudy.models.proving.shrink import shrunk
from understudy.models.stock import structure
from understudy.models.stock.shape import ModelShape
from understudy.models.streamed import attention_name
from understudy.recurrent import RecurrentShape
from understudy.weights.export import export

PROMPT = [(i * i + i // 3) % 90 + 1 for i in range(90)]


def test_each_use_has_its_own_adapters_and_place() -> None:
    config = AutoConfig.for_model(**values_of("zamba2"))
    model = structure.skeleton(config, torch.float32, attention_name())
    blocks = {index: layer.shared_transformer for index, layer in enumerate(model.model.layers) if hasattr(layer, "linear")}
    assert [block.self_attn.layer_idx for block in blocks.values()] == [1, 2, 4]
    for use, block in enumerate(blocks.values()):
        for adapters in (block.self_attn.linear_q_adapter_list, block.feed_forward.gate_up_proj_adapter_list):
            assert [isinstance(each, nn.Sequential) for each in adapters] == [place == use for place in range(3)]
    layers = ModelShape.of(config).layers
    assert [layer.kv_heads for layer in layers] == [0, 4, 4, 0, 4]
    assert all(layer.recurrent == RecurrentShape(128 + 2 * 2 * 16, 4, 2, 4, 16, 32) for layer in layers)


def test_a_small_copy_uses_each_block_twice() -> None:
    config = AutoConfig.for_model("zamba2", num_mem_blocks=2, use_shared_attention_adapter=True)
    small = shrunk(config)
    assert small.layers_block_type == ["linear_attention", *["hybrid"] * 4] and small.hybrid_layer_ids == [1, 2, 3, 4]
    assert fault(config) is None


def test_texts_are_those_of_transformers_and_files_come_back(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "zamba2")
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    # a third use has no tensors
    assert not any(name.startswith("model.layers.4.shared_transformer") for name in names)
    for options in ({}, {"link": True}):
        with opened(tmp_path / "model", **options) as llm:
            done = llm.generate(PROMPT, SamplingParams(max_new_tokens=20, ignore_eos=True))[0]
            export(llm.store, tmp_path / str(len(options)))
        assert done.token_ids == generated(model, PROMPT, 20) and done.stats.accepted > 0 and done.stats.bytes_streamed > 0
        for file in (tmp_path / "model").iterdir():
            assert (tmp_path / str(len(options)) / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("changes", [{"use_shared_attention_adapter": False}, {"use_mem_rope": False}, {"num_mem_blocks": 1}])
def test_other_switches_are_those_of_transformers(changes: dict[str, object]) -> None:
    assert fault(AutoConfig.for_model(**values_of("zamba2", **changes))) is None
