"""What was measured of a machine, in a file of the cache directory, by what it was measured on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where Stores live unless the user says otherwise, and what was measured."""
    if chosen := environment.get("UNDERSTUDY_CACHE"):
        return Path(chosen).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "understudy"


def recall(path: Path, made: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    """What the file `path` holds, by key, each as `made` makes it of its fields; nothing where it is missing or of another form."""
    try:
        return {key: made(fields) for key, fields in dict(json.loads(path.read_text())).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def remember(path: Path, known: Mapping[str, Any]) -> None:
    """Write the dataclasses `known` to the file `path`. A place that cannot be written to costs measuring again, nothing else."""
    write_json(path, {key: asdict(values) for key, values in known.items()})


def write_json(path: Path, said: Mapping[str, Any]) -> None:
    """Write `said` to the file `path` as a whole, by a rename. Where nothing can be written, nothing is, nor is any part left."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            fresh.write_text(json.dumps(said, indent=1) + "\n")
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
