"""What a checkpoint stores beside the weights of Linears: buffers of a model, and tensors of which several are one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ...weights.layout import TableSpec
from ..hashed_rows import HashedTable
from ..kept import is_table, whole_numbers
from .names import Finder
from .ngrams import TABLE


def stored_buffers(model: nn.Module) -> list[str]:
    """The buffers of `model` that a checkpoint may hold, by name; the others are computed from the config. Of whole numbers they
    are tables, and those that n-grams are hashed with."""
    stored = model.state_dict(keep_vars=True)
    hashing = {path for path, module in model.named_modules() if hasattr(module, TABLE)}
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    return [
        name for name, buffer in buffers if buffer.is_floating_point() or is_table(buffer) or name.rpartition(".")[0] in hashing
    ]


def buffers_found(
    model: nn.Module, find: Finder, stored: Callable[[str], str]
) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """The tensors of a checkpoint that are buffers of `model`, with their shapes; and which of them are whole numbers. `stored`
    tells the name of one that must be there: without a table of whole numbers nothing is known of tokens."""
    buffers = ((name, model.get_buffer(name)) for name in stored_buffers(model))
    found = {stored(name) if is_table(buffer) else find(name): buffer for name, buffer in buffers}
    shapes = {name: tuple(buffer.shape) for name, buffer in found.items() if name is not None}
    return shapes, {name for name in shapes if whole_numbers(found[name].dtype)}


def hashed_tables(model: nn.Module, find: Finder) -> list[TableSpec]:
    """The tables of `model` that are looked up by a hash, each in all of its pieces."""
    paths = [path for path, module in model.named_modules() if isinstance(module, HashedTable)]
    return [TableSpec(path, name) for path in paths for name in find.sources(f"{path}.weight")]


def pieces_of(names: Sequence[str], tensors: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors `names`, whose rows one after another are a parameter of `shape`, each with the shape that it must have."""
    if len(names) == 1:
        return {names[0]: shape}
    rows = [tensors[name].shape[0] for name in names]
    # where the rows are too few or too many, the last piece is the one that is refused
    rows[-1] += shape[0] - sum(rows)
    return {name: (count, *shape[1:]) for name, count in zip(names, rows, strict=True)}


def tables_shapes(
    model: nn.Module, names: Collection[str], modules: Collection[str], tensors: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """The shapes that the tables `names` must have, each of which is that of one of the `modules` of `model`, or a piece of it."""
    found: dict[str, tuple[int, ...]] = {}
    for path in dict.fromkeys(modules):
        own = [name for name, place in zip(names, modules, strict=True) if place == path]
        found |= pieces_of(own, tensors, tuple(model.get_parameter(f"{path}.weight").shape))
    return found
