"""Writes heads as others publish them, by hand-written tables of names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.heads.golden import EPSILON, HEADS, HIDDEN, KEY, KV_HEADS, THETA, VOCABULARY
from understudy.heads import DraftHead
from understudy.heads.files import config_of, load
from understudy.heads.held import Holding

# What the config.json of a published head with the layers of tests/heads/golden.py has.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": 24, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": KEY,
    "num_hidden_layers": 1, "rms_norm_eps": EPSILON, "rope_theta": THETA, "vocab_size": VOCABULARY, "pad_token_id": 0,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
}  # fmt: skip


def publish(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str = "model.safetensors") -> Path:
    """`path` with a config.json and a file of tensors, as safetensors or as torch saves them."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / file)
    else:
        torch.save(dict(tensors), path / file)
    return path


def named(head: DraftHead, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of `head` under published names: what begins as a value of `names` begins as its key."""
    found = {}
    for name, tensor in head.state_dict().items():
        published, own = next(((published, own) for published, own in names.items() if name.startswith(own)), ("", ""))
        found[published + name.removeprefix(own)] = tensor.clone()
    return found


def assert_same(path: Path, head: DraftHead) -> DraftHead:
    """The head that is published in `path` is `head`: the same tensors, and the same config but for what the format cannot tell."""
    again = load(path, Holding(torch.float32))
    assert config_of(path) == again.config
    assert again.state_dict().keys() == head.state_dict().keys()
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    told = again.config
    assert (told.kind, told.taps, told.layers, told.heads) == (
        head.config.kind, head.config.taps, head.config.layers, head.config.heads,
    )  # fmt: skip
    return again
