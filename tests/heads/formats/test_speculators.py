"""Heads in the format of the library speculators."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.heads.formats import test_eagle, test_eagle3
from tests.heads.formats.publish import LLAMA, assert_same, named, publish
from tests.heads.golden import HIDDEN, KEY, VOCABULARY, assert_golden
from tests.heads.test_eagle3 import reference
from understudy.errors import CheckpointError
from understudy.heads.files import config_of, load, save
from understudy.heads.held import Holding


def config(kind: str, **told: Any) -> dict[str, Any]:
    verifier = {"architectures": ["Qwen3ForCausalLM"], "name_or_path": "some/model"}
    methods = [{"proposal_type": "greedy", "speculative_tokens": 3}]
    chosen = {"algorithm": kind, "proposal_methods": methods, "default_proposal_method": "greedy", "verifier": verifier}
    return {
        "architectures": ["Speculator"], "speculators_model_type": kind, "speculators_version": "0.4.0",
        "speculators_config": chosen, "transformer_layer_config": LLAMA,
    } | told  # fmt: skip


def test_an_eagle3_head_is_read(tmp_path: Path) -> None:
    head = test_eagle3.made({"norm_before_residual": True}, taps=(2, 4, 5))
    tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in test_eagle3.tensors_of(head).items()}
    copies = {"verifier_lm_head.weight": torch.randn(VOCABULARY, HIDDEN), "embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN)}
    told = {"draft_vocab_size": 12, "norm_before_residual": True, "eagle_aux_hidden_state_layer_ids": [2, 4, 5]}
    again = assert_same(publish(tmp_path / "head", config("eagle3", **told), tensors | copies), head)
    assert_golden(again, lambda *given: reference(head, *given), depth=2)
    assert again.config.target.architecture == "Qwen3ForCausalLM"


def test_layers_of_qwen3_norm_queries_and_keys(tmp_path: Path) -> None:
    head = test_eagle3.made(taps=(2, 4, 5))
    tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in test_eagle3.tensors_of(head).items()}
    norms = {f"layers.0.self_attn.{name}_norm.weight": torch.rand(KEY) + 0.5 for name in "qk"}
    layer = {"transformer_layer_config": LLAMA | {"model_type": "qwen3"}}
    told = layer | {"draft_vocab_size": 12, "eagle_aux_hidden_state_layer_ids": [2, 4, 5]}
    path = publish(tmp_path / "head", config("eagle3", **told), tensors | norms)
    again = load(path, Holding(torch.float32))
    assert config_of(path) == again.config
    assert_golden(again, lambda *given: reference(again, *given), depth=2)
    save(again, tmp_path / "ours")
    assert load(tmp_path / "ours", Holding(torch.float32)).state_dict().keys() == again.state_dict().keys()
    layer["transformer_layer_config"]["layer_types"] = ["sliding_attention"]
    publish(path, config("eagle3", **(told | layer)), tensors | norms)
    with pytest.raises(CheckpointError, match="look back at a window"):
        load(path, Holding(torch.float32))


def test_numbers_of_layers_are_those_of_inputs_whatever_the_first_is(tmp_path: Path) -> None:
    published = test_eagle3.tensors_of(test_eagle3.made())
    tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in published.items()}
    told = {"draft_vocab_size": 12, "eagle_aux_hidden_state_layer_ids": [1, 4, 8]}
    path = publish(tmp_path / "head", config("eagle3", **told), tensors)
    assert load(path, Holding(torch.float32)).config.taps == (1, 4, 8)
    publish(path, config("eagle3", draft_vocab_size=12), tensors)
    assert load(path, Holding(torch.float32)).config.taps == test_eagle3.DEFAULT_TAPS


def test_an_eagle_head_is_read(tmp_path: Path) -> None:
    head = test_eagle.made(bias=False)
    tensors = named(head, {"fusion_fc.": "fc.", "transformer.": "layers.0."})
    told = {"layernorms": False, "fusion_bias": False, "transformer_layer_architecture": "LlamaDecoderLayer"}
    assert_same(publish(tmp_path / "head", config("eagle", **told), tensors), head)
    publish(tmp_path / "head", config("eagle", **(told | {"layernorms": True})), tensors)
    with pytest.raises(CheckpointError, match="with layernorms is not supported"):
        load(tmp_path / "head", Holding(torch.float32))


def test_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    path = publish(tmp_path / "head", config("dflash"), {"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="type 'dflash' are not supported; eagle3 and eagle are"):
        load(path, Holding(torch.float32))
