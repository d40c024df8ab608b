"""Blocks, Linears and their order are found in any model that is built like a decoder; what is built otherwise is refused."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from tests.tiny import FAMILIES, save, stock
from understudy import LLM
from understudy.errors import CheckpointError
from understudy.models.stock import structure
from understudy.models.stock.heads import ties_head
from understudy.models.stock.stored_tensors import stored_buffers
from understudy.models.streamed import attention_name
from understudy.weights.checkpoint import Checkpoint

FEW = ["llama-tied", "gemma2", "phi3", "glm4", "gpt2"]


def skeleton(family: str = "llama", **changes: Any) -> nn.Module:
    return structure.skeleton(stock(family, **changes).config, torch.float32, attention_name())


class Toy(nn.Module):
    """Two lists of modules, the shorter one of decoder blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(5))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(2))
        self.head: nn.Module = nn.Linear(8, 4)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_blocks_are_the_longest_list_that_holds_linears() -> None:
    toy = Toy()
    name, blocks = structure.decoder_blocks(toy)
    assert name == "blocks" and blocks is toy.blocks
    assert list(structure.streamed_linears(toy)) == ["blocks.0.0", "blocks.1.0", "head"]


def no_blocks(toy: Toy) -> None:
    toy.blocks = nn.ModuleList()


def other_modules(toy: Toy) -> None:
    toy.blocks = nn.ModuleList(Conv1D(8, 8) for _ in range(2))


def no_linear_head(toy: Toy) -> None:
    toy.head = nn.Embedding(4, 8)


def experts(toy: Toy) -> None:
    toy.blocks[1].register_parameter("experts", nn.Parameter(torch.zeros(2, 8, 8)))


def convolution(toy: Toy) -> None:
    toy.blocks[1].append(nn.Conv1d(8, 8, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_blocks, "Toy has no list of decoder blocks"),
        (other_modules, r"Toy keeps its weights in modules of class Conv1D, not in nn\.Linear"),
        (no_linear_head, "Toy has no linear output head"),
        (experts, r"blocks\.1\.experts is a weight \[2, 8, 8\] outside any plain Linear"),
        (convolution, r"blocks\.1\.2\.weight is a weight \[8, 8, 3\] outside any plain Linear"),
    ],
)
def test_what_is_built_otherwise_is_named(change: Callable[[Toy], None], words: str) -> None:
    toy = Toy()
    change(toy)
    with pytest.raises(CheckpointError, match=words):
        structure.streamed_linears(toy)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_is_that_of_a_pass_of_the_stock_model(family: str) -> None:
    model = stock(family)
    linears = structure.streamed_linears(model)
    seen: list[str] = []
    for path, module in linears.items():
        module.register_forward_pre_hook(lambda *_, path=path: seen.append(path))
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    bare = skeleton(family)
    found = structure.trace(bare, structure.streamed_linears(bare)).order
    assert found == seen and len(set(found)) == len(linears)
    assert bare.get_submodule(found[-1]) is bare.get_output_embeddings()  # type: ignore[operator]
    assert not any(module._forward_pre_hooks for module in bare.modules()), "hooks are taken away"


def test_a_linear_that_is_unused_or_used_twice_is_refused() -> None:
    model = skeleton()
    linears = structure.streamed_linears(model)
    with pytest.raises(CheckpointError, match="uses spare not at all"):
        structure.trace(model, linears | {"spare": nn.Linear(2, 2)})
    last = model.model.layers[2].mlp  # type: ignore[union-attr, index]
    last.up_proj = last.gate_proj  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"uses model\.layers\.2\.mlp\.\w+ more than once"):
        structure.trace(model, structure.streamed_linears(model))


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_every_tensor_of_a_checkpoint_has_one_place(family: str, tmp_path: Path) -> None:
    save(tmp_path, family)
    tensors = Checkpoint.open(tmp_path).tensors
    model = skeleton(family)
    layout = structure.layout(model, tensors)
    places = [spec.weight for spec in layout.linears] + list(layout.shared)
    places += [table.tensor for table in layout.tables] + ([] if ties_head(model) else [layout.embedding])
    assert sorted(places) == sorted(tensors)
    assert layout.linears[-1].shape == (256, 64)
    for spec in layout.linears:
        assert spec.stored_shape == tensors[spec.weight].shape


@pytest.mark.parametrize("family", FEW)
def test_a_config_foretells_the_tensors_of_its_checkpoint(family: str, tmp_path: Path) -> None:
    save(tmp_path, family, torch.bfloat16)
    stored = Checkpoint.open(tmp_path).tensors
    model = skeleton(family)
    told = structure.foretold(model, torch.bfloat16, tmp_path)
    assert {name: (t.shape, t.dtype, t.nbytes) for name, t in told.items()} == {
        name: (t.shape, t.dtype, t.nbytes) for name, t in stored.items()
    }
    assert structure.layout(model, told) == structure.layout(model, stored)


@pytest.mark.parametrize("family", ["qwen2_moe", "gemma4-moe", "nemotron_h-experts", "granitemoe", "deepseek_v2"])
def test_every_tensor_of_a_mixture_has_one_place(family: str, tmp_path: Path) -> None:
    """Those of each expert side by side, or one of all; routers and what is added to their scores are kept."""
    save(tmp_path, family, torch.bfloat16)
    tensors = Checkpoint.open(tmp_path).tensors
    model = skeleton(family)
    layout = structure.layout(model, tensors)
    places = [name for spec in layout.linears for name in spec.tensors] + list(layout.shared)
    places += [table.tensor for table in layout.tables] + ([] if ties_head(model) else [layout.embedding])
    assert sorted(places) == sorted(tensors)
    mixed = [spec for spec in layout.linears if spec.experts]
    assert {(spec.experts, spec.chosen) for spec in mixed} == {(8, 2)} and len(mixed) % 2 == 0
    for spec in layout.linears:
        assert all(tensors[name].shape == spec.stored_shape for name in spec.tensors)
        assert spec.outputs * max(spec.experts, 1) == spec.shape[0] and spec.outputs % spec.unit == 0
    told = structure.foretold(model, torch.bfloat16, tmp_path)
    bare = [(spec.module, spec.shape, spec.experts, spec.chosen) for spec in structure.layout(model, told).linears]
    assert bare == [(spec.module, spec.shape, spec.experts, spec.chosen) for spec in layout.linears]


@pytest.mark.parametrize("missing", [("up",), ("gate", "up", "down"), ("down",)])
def test_a_layer_that_lacks_experts_is_named(missing: tuple[str, ...], tmp_path: Path) -> None:
    save(tmp_path, "qwen3_moe", torch.bfloat16)
    tensors = dict(Checkpoint.open(tmp_path).tensors)
    for matrix in missing:
        del tensors[f"model.layers.1.mlp.experts.3.{matrix}_proj.weight"]
    with pytest.raises(CheckpointError, match=r"not whole: .*of 'model\.layers\.1\.mlp\.experts.* some have no tensor"):
        structure.layout(skeleton("qwen3_moe"), tensors)


@pytest.mark.parametrize(("changes", "rows"), [({"moe_intermediate_size": 96}, 96), ({"hidden_size": 80, "head_dim": 20}, 80)])
def test_experts_whose_rows_are_no_whole_blocks_are_refused_by_name(changes: dict[str, int], rows: int, tmp_path: Path) -> None:
    save(tmp_path, "qwen3_moe", torch.bfloat16, **changes)
    found = structure.layout(skeleton("qwen3_moe", **changes), Checkpoint.open(tmp_path).tensors)
    with pytest.raises(CheckpointError, match=rf"mlp\.experts\.\w+ has matrices of {rows} rows"):
        structure.in_blocks(found)
    with pytest.raises(CheckpointError, match="cannot be streamed yet"):
        LLM.plan_only(tmp_path, memory="1GiB")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(name: str, tmp_path: Path) -> None:
    save(tmp_path)
    tensors = Checkpoint.open(tmp_path).tensors
    with pytest.raises(CheckpointError, match=f"no tensor {name!r}"):
        structure.layout(skeleton(), {other: info for other, info in tensors.items() if other != name})
    with pytest.raises(CheckpointError, match=name):
        structure.layout(skeleton(), tensors | {name: replace(tensors[name], shape=(9, 9))})


def test_buffers_that_are_stored_are_those_of_the_state_dict() -> None:
    model = skeleton()
    block = model.model.layers[1]  # type: ignore[union-attr, index]
    block.register_buffer("scale", torch.ones(3))  # type: ignore[operator]
    block.register_buffer("count", torch.ones(3, dtype=torch.int64))  # type: ignore[operator]
    block.register_buffer("table", torch.ones(3), persistent=False)  # type: ignore[operator]
    assert stored_buffers(model) == ["model.layers.1.scale"]


def test_a_skeleton_holds_no_weight_and_leaves_torch_and_its_config_as_they_were() -> None:
    config = stock("llama", pad_token_id=3).config
    before, known = (nn.Linear.__init__, nn.Embedding.__init__), config.to_dict()
    model = structure.skeleton(config, torch.bfloat16, attention_name())
    weights = [p for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding) for p in m.parameters()]
    assert weights and all(p.is_meta for p in weights) and model.dtype == torch.bfloat16
    assert model.get_input_embeddings().padding_idx is None  # type: ignore[operator]
    assert not model.training and not any(b.is_meta for b in model.buffers())
    assert (nn.Linear.__init__, nn.Embedding.__init__) == before and config.to_dict() == known


def test_torch_is_as_it_was_after_a_config_that_cannot_be_built() -> None:
    before = nn.Linear.__init__
    config = stock("llama").config
    config.hidden_act = "no such function"
    with pytest.raises(CheckpointError, match="transformers cannot build a 'llama' model"):
        structure.skeleton(config, torch.float32, attention_name())
    assert nn.Linear.__init__ is before and not nn.Linear(2, 2).weight.is_meta


def test_skeletons_are_built_in_several_threads() -> None:
    configs = [stock(family).config for family in FEW]
    attention_name()
    built: list[nn.Module] = []
    before = nn.Linear.__init__

    def build(config: Any) -> None:
        built.append(structure.skeleton(config, torch.float32, attention_name()))

    threads = [threading.Thread(target=build, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Linear.__init__ is before
    assert len(built) == len(FEW) and all(structure.streamed_linears(model) for model in built)


@pytest.mark.parametrize("kind", ["rembert", "roformer"])
def test_an_encoder_whose_code_does_not_get_far_is_called_one(kind: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    config = AutoConfig.for_model(kind, **sizes)
    model = structure.skeleton(config, torch.float32, "eager")
    with pytest.raises(CheckpointError, match=r"is_decoder is false in it: an encoder, which writes no text"):
        structure.check_structure(model)
