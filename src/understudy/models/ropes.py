"""Rotary embeddings whose frequencies change with the length of a text: how far they stay as they are, and that they do.

`dynamic` ropes change past `max_position_embeddings`, `longrope` past `original_max_position_embeddings`. transformers changes
them for a whole forward, by its last position: a token's keys would depend on the other tokens of its pass. So texts end there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckpointError
from .wrapper import text_config

LONGROPE = "longrope"
# Values of a rope that are numbers above 0 where they are given.
NUMBERS = ("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")


def longest_exact(config: Any) -> int | None:
    """Most positions a text of this transformers `config` may have before a rope changes. None: the config does not say."""
    limits = [getattr(config, "max_position_embeddings", None)]
    limits += [rope.get("original_max_position_embeddings") for rope in _ropes(config) if rope.get("rope_type") == LONGROPE]
    return min((limit for limit in limits if limit), default=None)


def limit_said(config: Any) -> str:
    """What a refusal of a longer context adds where the transformers `config` names more positions than a text may have; else
    nothing."""
    longest = longest_exact(config)
    if longest is None or longest >= (getattr(config, "max_position_embeddings", None) or 0):
        return ""
    return f": past them its rope ({LONGROPE}) changes for the tokens before them too, so that no text would be exact"


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


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """The rope parameters of a config's text model: one set, or one for each kind of layer."""
    parameters = getattr(text_config(config), "rope_parameters", None)
    if isinstance(parameters, Mapping):
        yield parameters
        yield from (each for each in parameters.values() if isinstance(each, Mapping))
