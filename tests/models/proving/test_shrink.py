"""Small copies of configs: every switch stays, a layer of each kind, the size of a head."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig

from understudy.models.proving.shrink import VOCABULARY, WINDOW, shrunk, values_of
from understudy.models.stock import structure
from understudy.models.stock.shape import ModelShape
from understudy.models.stock.wrapper import text_config
from understudy.models.streamed import attention_name


def small(kind: str, **changes: Any) -> tuple[Any, Any]:
    config = AutoConfig.for_model(kind, **changes)
    return config, shrunk(config)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "gpt_neox", "opt", "phi3", "granite", "cohere2", "olmo3"])
def test_a_copy_is_small_and_keeps_the_size_of_a_head(kind: str) -> None:
    config, copy = small(kind)
    model = structure.skeleton(copy, torch.float32, attention_name())
    assert sum(p.numel() for p in model.parameters()) < 12_000_000
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (getattr(copy, "head_dim", None) or copy.hidden_size // copy.num_attention_heads) == size
    assert copy.vocab_size == VOCABULARY


def test_every_switch_that_is_no_size_stays() -> None:
    changes = {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rms_norm_eps": 0.01, "tie_word_embeddings": True}
    config, copy = small("llama", **changes)
    same = {key for key, value in values_of(config).items() if values_of(copy)[key] == value}
    sizes = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    assert set(values_of(config)) - same == sizes | {"max_position_embeddings"}


@pytest.mark.parametrize(("heads", "kv", "group"), [(32, 32, 1), (40, 40, 1), (28, 4, 3), (32, 8, 2), (8, 1, 2), (6, 3, 2)])
def test_heads_share_keys_as_before(heads: int, kv: int, group: int) -> None:
    _, copy = small("llama", num_attention_heads=heads, num_key_value_heads=kv, hidden_size=64 * heads)
    assert copy.num_attention_heads == group * copy.num_key_value_heads <= heads
    assert (copy.num_key_value_heads == 1) == (kv == 1)


def test_a_layer_of_each_kind_stays_in_order() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    _, copy = small("gemma3_text", num_hidden_layers=12, layer_types=kinds * 2, sliding_window=512)
    assert copy.layer_types == ["sliding_attention", "full_attention"] and copy.num_hidden_layers == 2
    assert copy.sliding_window == WINDOW
    _, copy = small("smollm3", num_hidden_layers=8, no_rope_layers=[1, 1, 1, 0] * 2)
    assert copy.no_rope_layers == [1, 0]


def test_values_that_layers_have_of_their_own_stay_with_them() -> None:
    """As the 31B of Gemma-4: two query heads to a head of keys in sliding layers, eight in the others."""
    config, copy = small(
        "gemma4_text", num_hidden_layers=12, num_attention_heads=32, num_key_value_heads=16, num_global_key_value_heads=4,
        attention_k_eq_v=True, hidden_size=5376, hidden_size_per_layer_input=0,
    )  # fmt: skip
    assert copy.layer_types == ["sliding_attention", "full_attention"] and copy.num_attention_heads == 4
    sizes = [(layer.key_size, layer.kv_heads, layer.window) for layer in ModelShape.of(copy).layers]
    assert sizes == [(256, 2, WINDOW), (512, 1, 0)]
    assert [config.per_layer_config[i].num_key_value_heads for i in (0, 5)] == [16, 4], "the config itself stays"


def test_layers_with_heads_of_their_own_share_them_otherwise_in_a_copy() -> None:
    """As Step-3.7: eight to a head of keys in full layers, twelve in those with a window."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
    changes = {"num_attention_heads": 64, "num_sliding_attention_heads": 96, "layer_types": kinds * 2, "sliding_window": 512}
    whole = CONFIG_MAPPING["step3p7"](text_config={"num_hidden_layers": 8, **changes})
    copy = text_config(shrunk(whole))
    heads = [own.num_attention_heads for own in copy.per_layer_config]
    assert set(zip(copy.layer_types, heads, strict=True)) == {("full_attention", 4), ("sliding_attention", 6)}
    assert copy.num_key_value_heads == 2 and copy.hidden_size == 256


def test_experts_that_have_no_matrices_shrink_with_those_that_have() -> None:
    """As LongCat-Flash, which also counts two layers a block."""
    _, copy = small("longcat_flash")
    assert (copy.n_routed_experts, copy.zero_expert_num, copy.moe_topk) == (64, 32, 12)
    assert copy.num_layers == 2 and copy.num_hidden_layers == 4


def test_sizes_in_parts_of_a_config_shrink_too() -> None:
    attention, network = {"kv_n_heads": 8, "rope_theta": 5e5}, {"moe_num_experts": 16, "moe_top_k": 2, "ffn_hidden_size": 10752}
    _, copy = small("dbrx", d_model=6144, n_heads=48, rope_theta=5e5, attn_config=attention, ffn_config=network)
    assert (copy.n_heads, copy.attn_config.kv_n_heads, copy.d_model) == (4, 2, 512)
    assert (copy.ffn_config.moe_num_experts, copy.ffn_config.ffn_hidden_size, copy.ffn_config.hidden_size) == (8, 240, 512)


def test_layers_that_read_anothers_keys_stay_and_so_does_one_that_nobody_reads() -> None:
    """As the E4B of Gemma-4."""
    _, copy = small("gemma4_text", num_hidden_layers=42, num_kv_shared_layers=18, hidden_size=2560, num_key_value_heads=2)
    kinds = ["sliding_attention", "full_attention"]
    assert copy.layer_types == kinds * 3 and copy.num_kv_shared_layers == 2
    assert [layer.reads for layer in ModelShape.of(copy).layers] == [None] * 4 + [2, 3]
    assert copy.vocab_size_per_layer_input == copy.vocab_size == VOCABULARY and copy.hidden_size_per_layer_input == 256


def test_tables_of_a_rope_stay_whole() -> None:
    rope = {
        "rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "rope_theta": 1e4,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    config, copy = small("phi3", rope_parameters=rope, max_position_embeddings=131072)
    assert copy.rope_parameters == config.rope_parameters and copy.max_position_embeddings == 131072


@pytest.mark.parametrize(("token", "moved"), [(None, None), (7, 7), (31999, VOCABULARY - 1), (-1, VOCABULARY - 1), (32000, None)])
def test_special_tokens_keep_their_place_in_a_short_vocabulary(token: int | None, moved: int | None) -> None:
    _, copy = small("llama", vocab_size=32000, pad_token_id=token)
    assert copy.pad_token_id == moved


def test_special_tokens_that_no_embedding_looks_at_may_lie_outside() -> None:
    _, copy = small("modernbert-decoder", vocab_size=256, pad_token_id=3)
    assert copy.cls_token_id == 50281 and copy.vocab_size == VOCABULARY


@pytest.mark.parametrize(
    ("kind", "name", "chosen", "expected"),
    [
        ("qwen3_moe", "num_local_experts", "num_experts_per_tok", 32), ("mixtral", "num_local_experts", "num_experts_per_tok", 8),
        ("qwen3_next", "num_experts", "num_experts_per_tok", 64), ("deepseek_v3", "n_routed_experts", "num_experts_per_tok", 32),
        ("ernie4_5_moe", "moe_num_experts", "moe_k", 32), ("olmoe", "num_experts", "num_experts_per_tok", 32),
        ("lfm2_moe", "num_experts", "num_experts_per_tok", 16),
    ],
)  # fmt: skip
def test_a_layer_has_fewer_experts_and_as_many_are_chosen(kind: str, name: str, chosen: str, expected: int) -> None:
    """As many as there may be of groups too, and never so few that a token goes to most of them."""
    config, copy = small(kind)
    assert getattr(copy, name) == expected and getattr(copy, chosen) == getattr(config, chosen)
    assert getattr(copy, "n_group", None) == getattr(config, "n_group", None)


def test_experts_of_odd_numbers_or_that_few_are_chosen_from_stay() -> None:
    assert small("qwen3_moe", num_experts=6, num_experts_per_tok=2)[1].num_experts == 6
    assert small("qwen2_moe", num_experts=60, num_experts_per_tok=4)[1].num_experts == 30


def test_an_index_chooses_few_tokens_or_blocks_by_heads_that_are_enough() -> None:
    layers = {"num_hidden_layers": 4, "mlp_layer_types": ["dense", *["sparse"] * 3]}
    _, copy = small("glm_moe_dsa", **layers, indexer_types=["full", "shared", "full", "shared"], index_n_heads=4)
    assert copy.index_topk == 6 and copy.index_n_heads == 32 and copy.indexer_types[0] == "full" and "shared" in copy.indexer_types
    _, copy = small("minimax_m3_vl_text", **layers, layer_types=["full_attention", *["minimax_m3_sparse"] * 3])
    assert (copy.index_topk_blocks, copy.index_block_size) == (2, 3) and copy.index_n_heads == copy.num_key_value_heads == 2
    assert "minimax_m3_sparse" in copy.layer_types and copy.index_head_dim == 128


def test_larger_copies_change_less() -> None:
    config = AutoConfig.for_model("llama", num_hidden_layers=5, hidden_size=512, num_attention_heads=8, num_key_value_heads=8)
    assert shrunk(config, few_layers=False).num_hidden_layers == 5
    assert shrunk(config, narrow=False).hidden_size == 512
