"""Options that contradict one another are refused, in one line each, before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .devices import AUTO
from .devices.several import several
from .errors import UsageError
from .plan.placement import BLOCKS, STAGES
from .policies import PaddedPolicy
from .registry import lookup

if TYPE_CHECKING:
    from .options import Options


def check_devices(options: Options) -> None:
    """Raise UsageError for several devices that cannot work together, or beside other options."""
    lookup("split", options.split, dict.fromkeys((AUTO, BLOCKS, STAGES), 0))
    if options.devices is None:
        if options.split != AUTO:
            raise UsageError(f"--split {options.split} is for several devices: name them with --devices.")
        return
    if options.split == STAGES:
        check_not_padded(options, "--split stages")
    several(options.devices)
    if options.device != AUTO:
        raise UsageError(f"--devices {options.devices} contradicts --device {options.device}: leave one of them out.")
    if options.resident == "whole":
        raise UsageError("--resident whole is for one device: with --devices, parts stay beside the copy (residual) or none.")


def check_prefixes(options: Options) -> None:
    """Raise UsageError for what keeping prefixes on disk cannot do."""
    if options.prefix_cache_size is not None and options.prefix_cache is None:
        raise UsageError("--prefix-cache-size is for --prefix-cache DIR, which was not given.")
    if options.prefix_bytes < 1:
        raise UsageError(f"--prefix-cache-size must be 1 byte or more, got {options.prefix_cache_size}.")
    if options.prefix_cache is not None and options.taps:
        raise UsageError("--prefix-cache keeps no hidden states, and taps hand out those of all tokens: choose one of the two.")
    if options.prefix_cache is not None:
        check_not_padded(options, "--prefix-cache")


def check_not_padded(options: Options, option: str) -> None:
    """Raise UsageError for an `option` that left-padded batches cannot have."""
    if isinstance(options.batching, PaddedPolicy):
        raise UsageError(f"{option} is not for left-padded batches, as {options.policy} has them: choose one of the two.")
