"""Accelerators: memory of their own for a model's tensors, and what computes there. One is one file and one line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import find, lookup

if TYPE_CHECKING:
    from .accelerator import Accelerator

DEVICES: dict[str, str] = {
    "cuda": "understudy.devices.cuda:open_cuda",
}


def where(device: Accelerator | None) -> str:
    """torch's name for where a model's tensors are."""
    return "cpu" if device is None else device.where


def open_device(name: str) -> Accelerator | None:
    """The accelerator of this name; None: the processor. UsageError, in one line, where it cannot be used.

    `auto` is the processor until a GPU has run all of this."""
    lookup("device", name, {"auto": "", "cpu": "", **DEVICES})
    if name in ("auto", "cpu"):
        return None
    made: Accelerator = find("device", DEVICES, name)()
    return made
