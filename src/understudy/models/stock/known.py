"""What was found out once about a kind of model, in small files: of a cache directory, or of a wheel, which brings those of the
built-in model beside its machine code."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import xxhash

from ...kernels.code_cache import READY
from ...plan.remembered import write_json

# What findings depend on in this package, beside the libraries: the code of our own passes.
_KERNELS = tuple(f"kernels/{name}.py" for name in ("attention*", "recurrence*", "convolution_cpu", "weighted"))
_STATES = ("cache.py", "compress*.py", "recurrent.py", "token_history.py", "tree.py")
SOURCES = ("models/**/*.py", *_KERNELS, *_STATES, "devices/processor.py")


def key_of(config: Any, values: Any) -> str:
    """32 hex digits for what was found out with `values` of a transformers `config`: other ones where a value, torch,
    transformers or the code of our own passes is another."""
    said = json.dumps([type(config).__name__, values, transformers_version(), torch.__version__], sort_keys=True, default=str)
    return xxhash.xxh3_128(said.encode() + _digest(SOURCES)).hexdigest()


@cache
def _digest(places: tuple[str, ...]) -> bytes:
    """Of all sources at `places` in this package: read once, since a start asks for several keys."""
    code = xxhash.xxh3_128()
    package = Path(__file__).parents[2]
    for place in places:
        for file in sorted(package.glob(place)):
            code.update(file.read_bytes())
    return code.digest()


def transformers_version() -> str:
    """The version of transformers that is here."""
    import transformers

    return str(transformers.__version__)


def recall(directory: Path, name: str) -> dict[str, Any] | None:
    """What the file `name` of `directory` says, or else that of the package; None where neither can be read."""
    for place in (directory, READY):
        with suppress(OSError, ValueError, TypeError):
            return dict(json.loads((place / name).read_text()))
    return None


def keep(directory: Path, name: str, said: dict[str, Any]) -> None:
    """Write what was found out to the file `name` of `directory`. One that cannot be written costs finding it out again at the next
    start, nothing else."""
    write_json(directory / name, said)
