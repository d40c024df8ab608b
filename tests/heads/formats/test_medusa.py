"""Medusa as its authors publish it, and as vLLM reads it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.heads.formats.publish import assert_same, named, publish
from tests.heads.golden import FACTS, HIDDEN, VOCABULARY, assert_golden, randomized
from tests.heads.test_medusa import reference
from understudy.errors import CheckpointError
from understudy.heads import DraftHead, HeadConfig
from understudy.heads.files import load
from understudy.heads.held import Holding
from understudy.heads.medusa import Medusa

LEGACY = {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "some/model"}
VLLM = {"model_type": "medusa", "num_heads": 3, "num_hidden_layers": 1, "hidden_size": HIDDEN, "vocab_size": VOCABULARY}


def made(says: int = 0, blocks: int = 1, own: bool = True) -> DraftHead:
    options = {"blocks": blocks, **({"own_outputs": True} if own else {})}
    return randomized(Medusa(HeadConfig("medusa", FACTS, (-1,), says, heads=3, options=options)))


def in_vllm(head: DraftHead, prefix: str = "") -> dict[str, Tensor]:
    changes = [("heads.", "blocks."), (".linear.", "."), ("outputs.", "lm_heads.")]
    found = {}
    for name, tensor in head.state_dict().items():
        if name.startswith("heads."):
            _, number, block, _, own = name.split(".")
            name = f"blocks.{number}.layers.{block}.{own}"
        found[prefix + name.replace(*changes[2])] = tensor.clone()
    return found


@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors", "model.safetensors"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_published_head_is_read_whatever_number_its_config_has(file: str, blocks: int, tmp_path: Path) -> None:
    head = made(blocks=blocks)
    tensors = named(head, {"": "heads."})
    tensors = {name.replace("outputs.", ""): tensor for name, tensor in tensors.items()}
    tensors = {name.replace(".weight", f".{blocks}.weight") if name.count(".") == 1 else name: x for name, x in tensors.items()}
    again = assert_same(publish(tmp_path / "head", LEGACY, tensors, file), head)
    assert_golden(again, lambda *given: reference(head, *given), depth=2)
    target = torch.nn.Identity()
    states = torch.randn(1, 2, HIDDEN)
    assert torch.equal(again.scores(states, 2, target), head.scores(states, 2, target))
    assert again.config.target.vocab_size == VOCABULARY


@pytest.mark.parametrize("prefix", ["", "medusa_heads."])
def test_a_head_of_vllm_is_read(prefix: str, tmp_path: Path) -> None:
    head = made()
    tensors = {name: tensor for name, tensor in in_vllm(head, prefix).items() if not name.endswith("bias")}
    again = load(publish(tmp_path / "head", VLLM, tensors), Holding(torch.float32)).state_dict()
    for name, tensor in head.state_dict().items():
        assert torch.equal(again[name], torch.zeros_like(tensor) if name.endswith("bias") else tensor)


def test_a_truncated_vocabulary_is_mapped(tmp_path: Path) -> None:
    head = made(says=5)
    assert head.token_map is not None
    head.token_map.copy_(torch.tensor([3, 1, 4, 39, 9]))
    tensors = in_vllm(head)
    tensors["token_map"] = tensors["token_map"].to(torch.int32)
    again = assert_same(publish(tmp_path / "head", VLLM | {"truncated_vocab_size": 5}, tensors), head)
    assert again.config.draft_vocab_size == 5 and again.config.target.vocab_size == VOCABULARY
    tensors["token_map"][2] = VOCABULARY
    publish(tmp_path / "head", VLLM, tensors)
    with pytest.raises(CheckpointError, match="none of the 40 of its target"):
        load(tmp_path / "head", Holding(torch.float32))


def test_the_targets_own_output_head_is_not_held_again(tmp_path: Path) -> None:
    head = made(own=False)
    tensors = in_vllm(head) | {"lm_head.weight": torch.randn(VOCABULARY, HIDDEN)}
    assert_same(publish(tmp_path / "head", VLLM | {"original_lm_head": True}, tensors), head)
    publish(tmp_path / "head", VLLM, tensors)
    again = load(tmp_path / "head", Holding(torch.float32)).state_dict()
    assert all(torch.equal(again[f"outputs.{number}.weight"], tensors["lm_head.weight"]) for number in range(3))


def test_a_head_without_an_output_for_its_first_is_refused(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in in_vllm(made()).items() if name != "lm_heads.0.weight"}
    path = publish(tmp_path / "head", VLLM, tensors)
    with pytest.raises(CheckpointError, match="lacks the output head of its first"):
        load(path, Holding(torch.float32))
