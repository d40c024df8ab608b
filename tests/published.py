"""Configs shaped as the models that people run, in the wrappers that they are published in; there are no weights."""

from typing import Any

KINDS = ["sliding_attention"] * 5 + ["full_attention"]
GEMMA4: dict[str, Any] = {
    "vocab_size": 262144, "head_dim": 256, "global_head_dim": 512, "final_logit_softcapping": 30.0, "tie_word_embeddings": True,
    "max_position_embeddings": 131072, "dtype": "bfloat16",
}  # fmt: skip
GEMMA4_31B: dict[str, Any] = {
    "model_type": "gemma4",
    "text_config": {
        **GEMMA4, "model_type": "gemma4_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60,
        "num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4, "attention_k_eq_v": True,
        "sliding_window": 1024, "layer_types": KINDS * 10, "hidden_size_per_layer_input": 0,
    },
}  # fmt: skip
GEMMA4_12B: dict[str, Any] = {
    "model_type": "gemma4_unified",
    "text_config": {
        **GEMMA4, "model_type": "gemma4_unified_text", "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "sliding_window": 1024, "layer_types": KINDS * 8,
    },
}  # fmt: skip
GEMMA4_E4B: dict[str, Any] = {
    "model_type": "gemma4",
    "text_config": {
        **GEMMA4, "model_type": "gemma4_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42,
        "num_attention_heads": 8, "num_key_value_heads": 2, "num_kv_shared_layers": 18, "sliding_window": 512,
        "layer_types": KINDS * 7, "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262144,
    },
}  # fmt: skip
QWEN36_27B: dict[str, Any] = {
    "model_type": "qwen3_5",
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "qwen3_5_text", "dtype": "bfloat16", "vocab_size": 248320, "hidden_size": 5120, "intermediate_size": 17408,
        "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256,
        "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16, "max_position_embeddings": 262144,
    },
}  # fmt: skip
# the class's own sizes are those of the 30B
MUSE_GLIMMER_30B: dict[str, Any] = {"model_type": "muse_glimmer", "dtype": "bfloat16"}
MISTRAL_SMALL_24B: dict[str, Any] = {
    "model_type": "mistral3",
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 131072, "sliding_window": None,
    },
}  # fmt: skip
