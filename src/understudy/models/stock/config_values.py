"""Values of a config.json that no model can have: each is named before transformers meets it, which would not name it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

# Values of a config that are whole numbers of 1 or more where they are given.
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings",
)  # fmt: skip
# Of them: what positions turn of a head, by some configs of attention over a latent state.
TURNED = "head_dim"
# More layers than any model has: transformers' config alone would take gigabytes for a billion of them.
MOST_LAYERS = 10_000


def check_kind(content: Mapping[str, Any], place: Path) -> None:
    """Raise CheckpointError for a kind of model that has no name, or that transformers does not have: its code would come along."""
    from transformers import CONFIG_MAPPING

    kind = content.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise CheckpointError(f"{place}: model_type must be the name of a kind of model, got {kind!r}.")
    if "auto_map" in content and kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{place}: a model of type {kind!r} needs code of its own (auto_map), which is never run. Choose a model whose kind"
            " transformers has itself."
        )


def check_sizes(content: Mapping[str, Any], place: Path) -> None:
    """Raise CheckpointError for sizes that no model can have, nor the text model in it."""
    if isinstance(text := content.get("text_config"), Mapping):
        check_sizes(text, place)
    for name in SIZES:
        value = content.get(name)
        if name == TURNED and value == 0 and content.get("qk_nope_head_dim"):
            # they may turn nothing
            continue
        if value is not None and (not isinstance(value, int) or value < 1):
            raise CheckpointError(f"{place}: {name} must be a whole number of 1 or more, got {value!r}.")
    if (content.get("num_hidden_layers") or 0) > MOST_LAYERS:
        raise CheckpointError(f"{place}: num_hidden_layers must be at most {MOST_LAYERS}, got {content['num_hidden_layers']}.")
    heads, groups = content.get("num_attention_heads"), content.get("num_key_value_heads")
    if heads and groups and heads % groups:
        raise CheckpointError(f"{place}: num_attention_heads {heads} is no multiple of num_key_value_heads {groups}.")
