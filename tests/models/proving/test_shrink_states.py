"""Recurrent states of a small copy: few heads and groups that fit its hidden size, a head as large as it was."""

from typing import Any

import pytest
from transformers import AutoConfig

from understudy.models.proving.proof import fault
from understudy.models.proving.shrink import shrunk
from understudy.models.recurrent_layers.mixers import recurs

# As published models have them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "bamba": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 128,
        "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "attn_layer_indices": [9, 18, 27],
    },
    "granitemoehybrid": {
        "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 64,
        "mamba_d_head": 64, "mamba_d_state": 128, "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 8192,
        "layer_types": ["full_attention" if i in (5, 15, 25, 35) else "linear_attention" for i in range(40)],
    },
    "falcon_h1": {
        "hidden_size": 3072, "num_hidden_layers": 44, "num_attention_heads": 12, "num_key_value_heads": 2, "mamba_d_ssm": 3072,
        "mamba_n_heads": 24, "mamba_d_head": 128, "mamba_d_state": 256,
    },
    "nemotron_h": {
        "hidden_size": 4480, "num_attention_heads": 40, "num_key_value_heads": 8, "mamba_num_heads": 128, "mamba_head_dim": 80,
        "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-", "intermediate_size": 15680,
    },
    "lfm2": {
        "hidden_size": 2048, "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 8,
        "full_attn_idxs": [2, 5, 9, 12, 15, 18, 21, 24], "intermediate_size": 10752,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_published_shape_becomes_a_small_one_with_each_kind_of_layer(family: str) -> None:
    config = AutoConfig.for_model(family, **PUBLISHED[family])
    small = shrunk(config)
    assert recurs(small) and set(small.layer_types) == set(config.layer_types)
    assert small.hidden_size <= 1024 and small.num_hidden_layers <= 3
    size = "mamba_head_dim" if family == "nemotron_h" else "mamba_d_head"
    assert getattr(small, size, None) == getattr(config, size, None)


@pytest.mark.parametrize(("groups", "hidden", "heads"), [(4, 768, 12), (3, 1152, 9)])
def test_heads_that_do_not_fit_become_smaller(groups: int, hidden: int, heads: int) -> None:
    sizes = {"mamba_n_heads": heads * 2, "mamba_d_head": hidden // heads, "mamba_n_groups": groups, "mamba_d_state": 64}
    attention = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": heads, "num_hidden_layers": 4}
    small = shrunk(AutoConfig.for_model("bamba", **sizes, **attention, attn_layer_indices=[3]))
    assert small.mamba_n_heads % small.mamba_n_groups == 0 and small.mamba_n_heads * small.mamba_d_head == 2 * small.hidden_size


def test_a_copy_of_a_published_shape_is_proven() -> None:
    assert fault(AutoConfig.for_model("granitemoehybrid", **PUBLISHED["granitemoehybrid"])) is None
