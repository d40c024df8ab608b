"""What kinds of values options have, by their annotations: a value of another kind is named before anything is done with it."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from .errors import UsageError

# What an annotation lets pass, and how that is called.
KINDS: dict[Any, tuple[type, str]] = {
    str: (str, "a text"), int: (Integral, "a whole number"), float: (Real, "a number"), bool: (bool, "True or False"),
    Path: (PathLike, "a path"), NoneType: (NoneType, "None"),
}  # fmt: skip


def check_kinds(options: Any, skipped: Collection[str] = ()) -> None:
    """Raise UsageError where a field of `options`, a dataclass, holds what its annotation does not name; `skipped` ones may."""
    for name, annotation in get_type_hints(type(options)).items():
        if name in skipped or get_origin(annotation) is tuple:
            continue
        kinds = [KINDS[each] for each in get_args(annotation) or (annotation,)]
        value = getattr(options, name)
        if not isinstance(value, tuple(kind for kind, _ in kinds)):
            raise UsageError(f"{name} must be {' or '.join(called for _, called in kinds)}, got {value!r}.")
