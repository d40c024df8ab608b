"""Which tensor of a checkpoint is which parameter of its model: with the base model's prefix or without, under older names too.

Names are those that transformers would load: its own table of changes is used forwards, from a checkpoint's names to a model's."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from ...startup import owned
from ..mixtures.tall_experts import JOINED
from ..proving.shrink import values_of
from .alternating import ALTERNATING, STORED
from .known import keep, key_of, recall

# Operations that rows of several tensors become one by: those of 2-D tensors, those of matrices that are stacked, and the stacking.
_JOINED, _JOINED_ROWS, _STACKED = ("Concatenate", 0), ("Concatenate", 1), ("MergeModulelist", 0)
# The operation that makes several stacks, one by each target, of as many experts each; the first is that of the text model.
_SHARED_OUT = ("ErnieFuseAndSplitTextVisionExperts", None)


class Finder:
    """Finds the one of a checkpoint's names that holds a given parameter of a stock model, by changes of names in their order."""

    def __init__(
        self, prefix: str, changes: Sequence[Any], names: Iterable[str], joined: Mapping[str, tuple[str, ...]] | None = None,
        alternating: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.prefix = f"{prefix}."
        # of the model's parameters, those that are made of several of its stock class's
        self.joined = joined or {}
        # of those, the ones that are taken as they are stored, where transformers puts rows apart: by the names of its class
        self.alternating = alternating or {}
        renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        self.converters = [change for change in changes if isinstance(change, WeightConverter)]
        # the name in the model of each tensor of the checkpoint, in the model or not
        self.targets = {name: _renamed(name, renamings) for name in names}
        self.found: dict[str, str] = {}
        for name, target in self.targets.items():
            self.found[target] = name
            self.found.setdefault(name, name)

    def __call__(self, parameter: str) -> str | None:
        """The checkpoint's name for a parameter of the model; None where there is none."""
        if parameter in self.alternating:
            if (told := parameter + STORED) in self.targets:
                return told
            matches = next((found for _, found in self._conversions(self.alternating[parameter])), {})
            # a tensor that has the name of a class's own has its rows in another order
            return next((name for names in matches.values() for name in names), None)
        return next((self.found[place] for place in self.places(parameter) if place in self.found), None)

    def places(self, name: str) -> tuple[str, str, str]:
        """What `name` may be called in a model: as it is, or without the base model's prefix, or with it."""
        return name, name.removeprefix(self.prefix), self.prefix + name

    def sources(self, parameter: str) -> tuple[str, ...]:
        """The tensors whose rows one after another are a parameter of the model: the one of its name, as a rule, or those that
        transformers joins or stacks. Empty where there are none."""
        if (name := self(parameter)) is not None:
            return (name,)
        own = [self(each) for each in self.joined.get(parameter, ())]
        if own and None not in own:
            return tuple(name for name in own if name is not None)
        for converter, matches in self._conversions(parameter):
            operations = [(type(each).__name__, getattr(each, "dim", None)) for each in converter.operations]
            if matches.keys() != set(converter.source_patterns):
                continue
            found = [matches[pattern] for pattern in converter.source_patterns]
            # one tensor in numbered pieces
            if operations == [_JOINED] and len(found) == 1 and "*" in converter.source_patterns[0]:
                return tuple(sorted(found[0], key=_numbers))
            # of joined stacks each has a matrix of every expert
            if operations == [_JOINED] or (operations == [_JOINED_ROWS] and all(len(names) == 1 for names in found)):
                return tuple(names[-1] for names in found)
            # one of each expert, or of each expert one by each pattern
            shares = len(converter.target_patterns) if operations == [_SHARED_OUT] else 1
            if shares > 1 or operations == [_STACKED, *[_JOINED_ROWS] * (len(found) > 1)]:
                # some may be missing, which their number tells
                experts = list(zip_longest(*(sorted(names, key=_numbers) for names in found)))
                return tuple(name for each in experts[: -(-len(experts) // shares)] for name in each if name is not None)
        return ()

    def changed(self, parameter: str) -> tuple[str, ...]:
        """The tensors that transformers makes a parameter of the model of by other changes than those of names and those that
        `sources` knows. Empty where there are none."""
        return next((tuple(n for names in matches.values() for n in names) for _, matches in self._conversions(parameter)), ())

    def made(self, parameter: str, tensors: Mapping[str, Tensor], config: Any) -> Tensor:
        """What transformers makes of the tensors that are a parameter `changed`, for a model with this `config`."""
        converter, matches = next(self._conversions(parameter))
        given: Any = {pattern: [tensors[name] for name in names] for pattern, names in matches.items()}
        patterns = converter.source_patterns, converter.target_patterns
        for operation in converter.operations:
            given = operation.convert(given, *patterns, config=config)
        found = given[next(iter(given))]
        made: Tensor = found[0] if isinstance(found, list) else found
        return made.contiguous()

    def targets_of(self, name: str) -> Iterator[str]:
        """What the checkpoint's tensor `name` is a part of, by the names of a model, where transformers makes others of it."""
        for converter in self.converters:
            place, pattern = converter.rename_source_key(self.targets[name])
            if pattern:
                first, *others = converter.target_patterns
                yield from (place, *(place.replace(first, other) for other in others))

    def conversion(self, parameter: str) -> str | None:
        """What transformers makes `parameter` of, and how, where that takes more than another name; None where it does not."""
        for converter, matches in self._conversions(parameter):
            sources = [name for names in matches.values() for name in names]
            operations = ", ".join(type(operation).__name__ for operation in converter.operations)
            return f"{sources[0]!r} and {len(sources) - 1} more by {operations}"
        return None

    def _conversions(self, parameter: str) -> Iterator[tuple[Any, dict[str, list[str]]]]:
        """The converters that make `parameter`, each with the checkpoint's names that it takes, by its patterns."""
        for converter, made in self._converted:
            matches: dict[str, list[str]] = {}
            # two of them may be one
            for place in dict.fromkeys(self.places(parameter)):
                for pattern, names in made.get(place, {}).items():
                    matches.setdefault(pattern, []).extend(names)
            if matches:
                yield converter, matches

    @cached_property
    def _converted(self) -> list[tuple[Any, dict[str, dict[str, list[str]]]]]:
        """By what each converter makes of them, and by which of its patterns: the checkpoint's names."""
        converted = []
        for converter in self.converters:
            made: dict[str, dict[str, list[str]]] = {}
            for name, target in self.targets.items():
                place, pattern = converter.rename_source_key(target)
                if pattern:
                    made.setdefault(place, {}).setdefault(pattern, []).append(name)
            converted.append((converter, made))
        return converted


def finder(model: Any, names: Iterable[str]) -> Finder:
    """The finder of a checkpoint's `names` for the stock `model`, as it is or cut to the text model of a wrapper."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    parts = getattr(model, "understudy_parts", None)
    changes = get_model_conversion_mapping(model) if parts is None else parts.changes
    ours = getattr(model, JOINED, None), getattr(model, ALTERNATING, None)
    return Finder(getattr(model, "base_model_prefix", ""), changes, names, *ours)


def sources(model: Any, wanted: Sequence[str], names: Collection[str], directory: Path | None) -> dict[str, tuple[str, ...]]:
    """For each of the `wanted` parameters and buffers of the stock `model`: the tensors among a checkpoint's `names` it is made of.

    A command keeps them in `directory`, if there is one: transformers' table has a thousand patterns, 40 ms of work."""
    if directory is None or not owned() or not type(model).__module__.startswith("transformers."):
        return _sought(model, wanted, names)
    values = [type(model).__name__, values_of(model.config), list(wanted), sorted(names)]
    file = f"names/{model.config.model_type}-{key_of(model.config, values)}.json"
    with suppress(TypeError, KeyError):
        said = (recall(directory, file) or {})["sources"]
        found = {name: tuple(said[name]) for name in wanted}
        if all(name in names for pieces in found.values() for name in pieces):
            return found
    found = _sought(model, wanted, names)
    keep(directory, file, {"sources": found})
    return found


def _sought(model: Any, wanted: Iterable[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    find = finder(model, names)
    return {name: find.sources(name) for name in wanted}


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _renamed(name: str, renamings: Iterable[Any]) -> str:
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name
