"""Tensors of a checkpoint that its text model does not use: they belong to something else and are left aside, or are refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from ...errors import CheckpointError
from ...weights.words import GPTQ
from .names import Finder
from .wrapper import text_config

# What transformers computes itself and old checkpoints hold all the same, where the model has something of the name.
COMPUTED = ("rotary_emb.inv_freq", "position_ids")
# Numbers that old programs stored beside masks.
OLD = r"\.masked_bias$"


def no_weights(tensors: Mapping[str, Any]) -> set[str]:
    """Names of `tensors` that may lie within a text model and be none of its own: those of whole numbers or truth values, and the
    biases that programs for GPTQ give each Linear. transformers leaves both aside where a model has nothing of the name."""
    whole = {name for name, info in tensors.items() if not (info.dtype.is_floating_point or info.dtype.is_complex)}
    matrices = (name for name, info in tensors.items() if getattr(getattr(info, "packed", None), "order", "") == GPTQ)
    return whole | {f"{name.removesuffix('.weight')}.bias" for name in matrices}


def left_aside(
    model: nn.Module, find: Finder, used: Collection[str], whole: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The checkpoint's tensors that are not among those `used` by the stock `model`, by the part that they belong to: a tower, or
    further heads that guess tokens. `find`: the finder of all the checkpoint's names; `whole`: those of `no_weights`, which within
    the text model are what some programs store besides.

    Tensors that the model computes itself are in no part. Raises CheckpointError, naming it, for a tensor that lies within the
    text model and is none of its own: the config must be that of another model."""
    sort = Sorting(model, find, whole)
    aside: dict[str, list[str]] = {}
    for name in find.targets:
        if name in used or sort.computed(name):
            continue
        part = sort.part(name)
        if part is None:
            raise CheckpointError(
                f"The checkpoint's tensor {name!r} fits nothing in {type(model).__name__}: its config.json describes another model."
                " Get both from one source."
            )
        aside.setdefault(part, []).append(name)
    return {part: tuple(names) for part, names in aside.items()}


class Sorting:
    """Sorts the tensors that a stock `model` does not use."""

    def __init__(self, model: nn.Module, find: Finder, whole: Collection[str]) -> None:
        self.find = find
        self.whole = whole
        self.modules = {path for path, _ in model.named_modules()}
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self.own = {name for name, _ in named}
        others: Any = getattr(model, "understudy_parts", None)
        self.others: tuple[str, ...] = () if others is None else others.paths
        patterns = (OLD, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), *_further_layers(model.config))
        self.ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
        self.known = tuple(name for name in COMPUTED if any(own.endswith(name) for own in self.own))

    def computed(self, name: str) -> bool:
        """Is tensor `name` one that the model computes or has by another name? Raises CheckpointError for two of one name."""
        target = self.find.targets[name]
        own = next((place for place in self.find.places(target) if place in self.own), None)
        if own is not None and (chosen := self.find(own)) != name:
            raise CheckpointError(f"The checkpoint's tensors {chosen!r} and {name!r} are both {own!r}. Get it again.")
        return own is not None or (bool(self.known) and target.endswith(self.known))

    def part(self, name: str) -> str | None:
        """The part, beside the text model, that tensor `name` belongs to; None: it lies within the text model.

        It is a part of the model's class that was cut off, or one that transformers leaves aside too: the class says so, or has no
        module for it, or it can be no weight."""
        places = self.find.places(self.find.targets[name])
        made = tuple(self.find.targets_of(name)) if self.others else ()
        for other in self.others:
            if any(place == other or place.startswith(f"{other}.") for place in (*places, *made)):
                return other.rpartition(".")[2]
        first = places[0].partition(".")[0]
        if first not in self.modules and self.find.prefix + first not in self.modules:
            return first
        ignored = name in self.whole or any(self.ignored.search(place) for place in (name, *places[:1]))
        return self._missing(places[0]) if ignored else None

    def _missing(self, target: str) -> str:
        """Of `target`'s path, the first name that is no module of the model; a number with the name before it."""
        steps = target.split(".")
        count = next((n for n, path in enumerate(_paths(steps)) if path not in self.modules), len(steps) - 1)
        return ".".join(steps[count - 1 : count + 1] if steps[count].isdigit() and count else steps[count : count + 1])


def _further_layers(config: Any) -> Iterator[str]:
    """Patterns of the names of layers after the model's own, which predict further tokens: the `config` says how many there are."""
    text = text_config(config)
    count = getattr(text, "num_nextn_predict_layers", None) or 0
    yield from (rf"(^|\.)layers\.{number}\." for number in range(text.num_hidden_layers, text.num_hidden_layers + count))


def _paths(steps: list[str]) -> Iterator[str]:
    return (".".join(steps[: n + 1]) for n in range(len(steps)))
