"""The model's own 4-bit copy, writing scratch slots of the target's own cache. The target overwrites those slots
when it verifies, so the draft always reads the exact model's keys and values for the past, and nothing needs
copying back."""

from __future__ import annotations

from dataclasses import dataclass

from . import TargetModel
from .proposer import ModelProposer
from .search import SearchSpec


@dataclass(frozen=True, kw_only=True)
class SubstituteSpec(SearchSpec):
    """`substitute`: a tree search with the 4-bit copy, which is held for it."""

    @property
    def holds_substitute(self) -> bool:
        return True

    def proposer(self, target: TargetModel) -> ModelProposer:
        return ModelProposer(target)
