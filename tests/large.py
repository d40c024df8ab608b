"""Configs of large models that people run, as wrappers publish them: the classes' own defaults but for the sizes given here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SLIDING, FULL, RECURRENT = "sliding_attention", "full_attention", "linear_attention"

LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    # 48 layers with a recurrent state, 16 with keys and values: 64 KiB a token
    "Qwen3.6-27B": (
        "qwen3_5",
        {
            "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 64, "num_attention_heads": 24,
            "num_key_value_heads": 4, "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
            "vocab_size": 248320, "layer_types": [RECURRENT, RECURRENT, RECURRENT, FULL] * 16, "max_position_embeddings": 262144,
        },
    ),
    # five layers with a window for one that sees all, whose heads are twice as large and whose values are their keys
    "Gemma-4-31B": (
        "gemma4",
        {
            "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60, "num_attention_heads": 32,
            "num_key_value_heads": 16, "num_global_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
            "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 1024, "final_logit_softcapping": 30.0,
            "layer_types": ([SLIDING] * 5 + [FULL]) * 10,
        },
    ),
    "Muse-Glimmer-30B": ("muse_glimmer", {}),
    "Mistral-Small-24B": (
        "mistral3",
        {
            "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072, "sliding_window": None,
        },
    ),
}  # fmt: skip


def write(name: str, directory: Path) -> None:
    """Write the config.json of the model called `name`, in bfloat16."""
    from transformers import AutoConfig

    kind, text = LARGE[name]
    config = AutoConfig.for_model(kind, text_config=text, dtype="bfloat16")
    config.save_pretrained(directory)
