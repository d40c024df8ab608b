"""`mtp`: a tree search with the layer for multi-token prediction that the model's own checkpoint brings along."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..heads.formats import mtp
from ..heads.source import Bearer, HeadSource
from . import methods_alone
from .head_proposer import TrainedSpec
from .trained import BITS


@dataclass(frozen=True)
class BroughtHead:
    """The layer for multi-token prediction among the tensors that a model's text part does not use."""

    # Bits of its weights where it drafts.
    bits: int = BITS

    def source(self, bearer: Bearer) -> HeadSource:
        """That of the model `bearer`. Raises UsageError where it has none, and CheckpointError for one that is not whole or cannot
        be run."""
        found = mtp.found(bearer)
        if found is None:
            raise UsageError(
                f"{bearer.name} brings no layer for multi-token prediction, which --method mtp drafts with. Methods that need"
                f" nothing of the kind: {', '.join(methods_alone())}."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class MtpSpec(TrainedSpec):
    """`mtp`: no value, since the checkpoint has the layer."""

    @property
    def head(self) -> BroughtHead:
        return BroughtHead(self.bits)

    def check(self, bearer: Bearer) -> None:
        super().check(bearer)
        heads = self.head.source(bearer).config.heads
        if heads and self.depth > heads:
            raise UsageError(f"depth={self.depth} is too deep: {bearer.name} brings {heads} layers, which draft a token each.")

    @property
    def taps(self) -> tuple[int, ...]:
        return mtp.TAPS

    @property
    def holds_head(self) -> bool:
        return True
