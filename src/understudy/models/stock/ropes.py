"""Rotary embeddings whose frequencies change with the length of a text: which ones a context has, and that they stay.

`dynamic` ropes change past `max_position_embeddings`, `longrope` (https://arxiv.org/abs/2402.13753) past
`original_max_position_embeddings`. transformers changes them for a whole forward, by its last position: a token's keys would depend
on the other tokens of its pass. So texts end where a dynamic rope changes. A longrope has, from the first token on, the frequencies
for long texts where the context is one of long texts, as in vLLM and llama.cpp, and else those for short ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import CheckpointError
from .wrapper import text_config

LONGROPE = "longrope"
# Values of a rope that are numbers above 0 where they are given.
NUMBERS = ("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")


def longest_exact(config: Any) -> int | None:
    """Most positions a text of this transformers `config` may have before a rope changes. None: the config does not say."""
    limits = [getattr(config, "max_position_embeddings", None), *(_changing(rope) for rope in _ropes(config))]
    return min((limit for limit in limits if limit), default=None)


def for_context(config: Any, context: int | None) -> Any:
    """`config`; where a text of `context` tokens (None: not asked for) is too long for the short frequencies of a longrope, a copy
    of it whose longropes have the long ones whatever the text."""
    if context is None or not any(context > (_changing(rope) or context) for rope in _ropes(config)):
        return config
    longer = copy.deepcopy(config)
    for rope in _ropes(longer):
        if _changing(rope):
            rope["short_factor"] = rope["long_factor"]
    return longer


def said_of(config: Any, context: int) -> str:
    """One sentence where texts of `context` tokens have the long frequencies of a longrope, by a config `for_context`."""
    ropes = [rope for rope in _ropes(config) if rope.get("rope_type") == LONGROPE]
    short = min((rope.get("original_max_position_embeddings", context) for rope in ropes), default=context)
    how = f"this model has its frequencies for long texts ({LONGROPE}) from the first token on"
    return f"The context is longer than {short} tokens, so {how}." if context > short else ""


def _changing(rope: MutableMapping[str, Any]) -> int | None:
    """The positions after which a longrope changes; None for ropes that do not, or are none."""
    if rope.get("rope_type") != LONGROPE or rope.get("short_factor") == rope.get("long_factor"):
        return None
    return rope.get("original_max_position_embeddings")


def check_ropes(config: Any, place: Path) -> None:
    """Raise CheckpointError for a rope in the transformers `config`, read from the file `place`, whose values no rope can have."""
    for rope in _ropes(config):
        for name in NUMBERS:
            value = rope.get(name)
            given = name in rope if name == "rope_theta" else value is not None
            if given and (not isinstance(value, (int, float)) or value <= 0):
                raise CheckpointError(f"{place}: the rope's {name} must be a number above 0, got {value!r}.")
        if not isinstance(rope.get("rope_type", ""), str):
            raise CheckpointError(f"{place}: rope_type must be the name of a rope, got {rope['rope_type']!r}.")


def fix_ropes(model: nn.Module) -> None:
    """Keep the frequencies that the stock `model` begins with, whatever positions a pass holds: a draft may look further."""
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            module.rope_type = _fixed(kind)  # type: ignore[assignment]
        elif isinstance(kind, dict):
            module.rope_type = {layers: _fixed(each) for layers, each in kind.items()}  # type: ignore[assignment]


def _fixed(kind: str) -> str:
    return "default" if kind == LONGROPE or "dynamic" in kind else kind


def _ropes(config: Any) -> Iterator[MutableMapping[str, Any]]:
    """The rope parameters of a config's text model: one set, or one for each kind of layer."""
    parameters = getattr(text_config(config), "rope_parameters", None)
    if isinstance(parameters, MutableMapping):
        yield parameters
        yield from (each for each in parameters.values() if isinstance(each, MutableMapping))
