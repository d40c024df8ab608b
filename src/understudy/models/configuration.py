"""The small files beside a model's weights: its configuration, its tokenizer, the tokens that end a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError, StoreError
from . import structure


def config_of(directory: Path) -> Any:
    """The transformers config in `directory`. CheckpointError for kinds that are unknown or unsupported, before any work."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{directory}/config.json is not one transformers knows: {str(error).splitlines()[0]}"
        ) from None
    structure.refuse_unsupported(config.to_dict())
    return config


def tokenizer_of(directory: Path) -> Any:
    """The transformers tokenizer in `directory`. Raises StoreError where there is none that can be used.

    Some classes keep, as Python objects, the vocabulary and merges they were built from: 500 bytes a token beside the 300 that
    the tokenizer itself takes (docs/log.md). They are given back."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (ValueError, OSError) as error:
        raise StoreError(f"{directory} has no usable tokenizer: {str(error).splitlines()[0]}") from None
    if getattr(tokenizer, "is_fast", False):
        for name in ("_vocab", "_merges"):
            vars(tokenizer).pop(name, None)
    return tokenizer


def stop_ids(directory: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a text: of the generation config, the config and the tokenizer."""
    from transformers import GenerationConfig

    places: list[Any] = [config, tokenizer]
    if (directory / "generation_config.json").is_file():
        places.append(GenerationConfig.from_pretrained(directory))
    found: set[int] = set()
    for place in places:
        value = getattr(place, "eos_token_id", None)
        found |= set(value) if isinstance(value, (list, tuple)) else {value} if value is not None else set()
    return frozenset(found)
