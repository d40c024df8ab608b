"""Heads as others publish them. Each format says which files are in it, and makes a `HeadConfig` and named tensors of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import HeadConfig


@dataclass(frozen=True)
class HeadContent:
    """A head as it is built: what it is, and its tensors by the names of its modules."""

    config: HeadConfig
    tensors: dict[str, Tensor]


class HeadFormat(ABC):
    """A published format of heads."""

    # What people call it.
    name: ClassVar[str]

    @abstractmethod
    def fits(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
        """Is a head in this format, by its config.json and by the names and shapes of its tensors?"""

    @abstractmethod
    def translate(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> HeadContent:
        """What the head is in this package. Its tensors may be on the meta device, where their shapes alone count. Raises
        CheckpointError where the config or a tensor is not as the format says."""


FORMATS: dict[str, str] = {}
"""Name -> subclass of HeadFormat. They are asked in this order; the first that fits reads the head."""
