"""What may be chosen when a model is loaded, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .devices import DEVICES
from .errors import UsageError
from .models import calibration
from .quantizers.mixed import mixed
from .registry import lookup
from .weights.prepare import cache_directory

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BITS: dict[int | str, str] = {2: "int2", 3: "int3", 4: "int4", 8: "int8", 16: "exact"}
AUTO = "auto"


@dataclass(frozen=True)
class Options:
    """What may be chosen when a model is loaded. Sizes are bytes or texts such as "8GiB"; None: decided here.

    rows: sequences that run together. throttle: bytes/s the disk is slowed down to, for tests and benchmarks (0: not)."""

    memory: str | int | None = None
    host_memory: str | int | None = None
    device: str = "auto"
    dtype: str = "auto"
    method: str = "substitute"
    resident: str = "auto"
    context: int | None = None
    rows: int | None = None
    bits: int | str = 4
    quantizer: str | None = None
    calibrate: str | Path | None = None
    codec: str = AUTO
    link: bool = False
    output: str | Path | None = None
    offline: bool = False
    throttle: float = 0.0
    cache: Path = Path()

    @classmethod
    def of(cls, given: Mapping[str, Any], environment: Mapping[str, str]) -> Options:
        """Check every option; an unknown one is an error that names the nearest."""
        known = {field.name: field for field in fields(cls) if field.name != "cache"}
        for name in given:
            lookup("option", name, known)
        options = cls(**given, cache=cache_directory(environment))
        lookup("dtype", options.dtype, {"auto": 0, **DTYPES})
        lookup("device", options.device, {"auto": 0, "cpu": 0, **DEVICES})
        lookup("resident", options.resident, {"auto": 0, "none": 0, "residual": 0, "whole": 0})
        for name in ("context", "rows"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be 1 or more, got {value}.")
        if options.host_memory is not None and options.device in ("auto", "cpu"):
            raise UsageError("--host-memory is for an accelerator; on the CPU --memory is all the memory there is.")
        if options.quantizer is None and options.bits not in BITS and mixed(str(options.bits)) is None:
            raise UsageError(f"--bits must be one of {', '.join(map(str, BITS))} or mixed, got {options.bits}.")
        if options.link:
            options = _linked(options)
        assert options.recipe  # raises what is wrong with a mix and its text
        return options

    @cached_property
    def recipe(self) -> str:
        """The quantiser of all weights, or the mix. A text that it is calibrated on is read once."""
        return calibration.recipe(self.quantizer or BITS.get(self.bits, str(self.bits)), self.calibrate)

    @property
    def drafts(self) -> bool:
        return self.method.partition(":")[0] == "substitute"


def _linked(options: Options) -> Options:
    """With the codec that `--link` means."""
    if options.codec not in (AUTO, "link"):
        raise UsageError(
            f"--link keeps no copy of the exact weights, --codec {options.codec} does: choose one of them."
        )
    if options.recipe == "exact":
        raise UsageError("--link needs a copy that drafts beside the exact weights: --bits 8 or fewer.")
    return replace(options, codec="link")
