"""Small tables of n-grams, and an index of few blocks, for the copy that is proven (`shrink.py`)."""

from __future__ import annotations

from typing import Any

# n-grams that a head of the table tells apart at least, heads, numbers of each, and pieces that a checkpoint has of a table
NGRAMS, HEADS, WIDTH, PIECES = 61, 2, 6, 3
# tokens of which an index has one key, keys that a node chooses, and heads: with few, many scores are nought, of which transformers
# takes any
BLOCK, CHOSEN, INDEX_HEADS = 4, 3, 32
# of the input mixer of hyper-connections
RANK = 16


def narrow_tables(values: dict[str, Any]) -> None:
    """Few n-grams, and few blocks of an index, in the values of a config."""
    if values.get("ple_layer_ids"):
        values["heads_per_ngram"] = min(values["heads_per_ngram"], HEADS)
        values["ple_embed_dim"] = (values["ngram_size"] - 1) * values["heads_per_ngram"] * WIDTH
        values["ngram_vocab_size_base"] = min(values["ngram_vocab_size_base"], NGRAMS)
        values["split_ngram_parts"] = min(values["split_ngram_parts"], PIECES)
    if values.get("indexer_compress_ratio"):
        values["indexer_compress_ratio"] = min(values["indexer_compress_ratio"], BLOCK)
        values["indexer_budget"] = CHOSEN * values["indexer_compress_ratio"]
        values["indexer_n_heads"] = max(values["indexer_n_heads"], INDEX_HEADS)
    if values.get("index_kpool"):
        values["index_kpool"] = min(values["index_kpool"], BLOCK)
        values["index_topk"] = CHOSEN * values["index_kpool"]
        values["index_n_heads"] = max(values["index_n_heads"], INDEX_HEADS)
    if values.get("hc_lowrank"):
        values["hc_lowrank"] = min(values["hc_lowrank"], RANK)
