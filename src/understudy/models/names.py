"""Which tensor of a checkpoint is which parameter of its model: with the base model's prefix or without, under older names too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def finder(model: Any, names: Iterable[str]) -> Callable[[str], str | None]:
    """Finds the one of a checkpoint's `names` that holds a given parameter of the stock `model`; None where there is none.

    Names are those that transformers would load: it renames parameters of some kinds of models."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    parts = getattr(model, "understudy_parts", None)
    changes = get_model_conversion_mapping(model) if parts is None else parts.changes
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    found: dict[str, str] = {}
    for name in names:
        renamed = name
        for renaming in renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        found[renamed] = name
        found.setdefault(name, name)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def find(parameter: str) -> str | None:
        places = (parameter, parameter.removeprefix(prefix), prefix + parameter)
        return next((found[place] for place in places if place in found), None)

    return find
