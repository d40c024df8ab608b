"""Small tables and an index of few blocks: the copy still has each kind of layer, and a text has more blocks than are chosen."""

from transformers import AutoConfig

from understudy.models.proving.proof import fault
from understudy.models.proving.shrink import shrunk
from understudy.models.proving.shrink_tables import BLOCK, CHOSEN

# As the config class has it, with what it leaves open.
PUBLISHED = {
    "model_type": "qwen4_exp_text", "indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 2048,
    "indexer_compress_ratio": 16, "ple_layer_ids": [2, 15], "eos_token_id": 248044,
}  # fmt: skip


def test_a_large_model_becomes_a_small_one_with_each_kind_of_layer() -> None:
    large = AutoConfig.for_model(**PUBLISHED)
    small = shrunk(large)
    assert small.layer_types == ["linear_attention", "linear_attention", "indexed_attention"] and small.ple_layer_ids == [2]
    assert small.indexer_compress_ratio == BLOCK and small.indexer_budget == BLOCK * CHOSEN
    assert small.ngram_vocab_size_base < 100 and small.ple_embed_dim < 64 and small.split_ngram_parts == 3
    assert small.ngram_size == large.ngram_size and small.hc_count == large.hc_count and small.indexer_head_dim == 256
    assert small.linear_num_value_heads == 2 * small.linear_num_key_heads == 4


def test_an_index_that_learns_has_few_blocks_too() -> None:
    small = shrunk(AutoConfig.for_model("glm5_next")).text_config
    assert small.index_kpool == BLOCK and small.index_topk == BLOCK * CHOSEN and small.index_n_heads == 32
    assert set(small.layer_types) == {"linear_attention", "indexed_attention"} and small.head_dim == 0


def test_such_copies_are_those_of_transformers() -> None:
    assert fault(AutoConfig.for_model(**PUBLISHED)) is None
    assert fault(AutoConfig.for_model("glm5_next")) is None
