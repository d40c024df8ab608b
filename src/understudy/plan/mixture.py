"""What a mixture of experts changes in a plan: of the bytes of experts, a pass and a level use those that their nodes go to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .residents import Kept, LinearSize, used_share


@dataclass(frozen=True)
class Mixture:
    """The bytes of experts in a plan, of which nodes use some: of those that it counts as streamed, as read by a level, and as read
    by a pass."""

    # Of the experts of a layer, those that a token goes to.
    share: float
    streamed_bytes: int
    level_bytes: int
    exact_bytes: int

    @classmethod
    def of(cls, parts: Sequence[int], linears: Sequence[LinearSize], kept: Kept) -> Mixture | None:
        """That of `linears`, whose parts have the bytes `parts`, where some are `kept`. None where there are no experts."""
        mixed = [index for index, linear in enumerate(linears) if linear.share < 1]
        if not mixed:
            return None
        number, streamed = 0, 0
        for index, linear in enumerate(linears):
            if linear.share < 1 and index not in kept.whole | kept.decoded:
                streamed += sum(parts[n] for n in range(number, number + linear.parts) if n not in kept.parts)
            number += linear.parts
        exact = sum(linears[i].exact_bytes for i in mixed)
        level = sum(linears[i].exact_bytes if i in kept.whole else linears[i].substitute_bytes for i in mixed)
        share = sum(linears[i].share * linears[i].exact_bytes for i in mixed) / exact
        return cls(share, streamed, level, exact)

    def all_brought(self) -> Mixture:
        """The same where a pass brings and reads all experts, whichever its nodes go to."""
        return replace(self, streamed_bytes=0, exact_bytes=0)

    def unused(self, nodes: float) -> float:
        """The share of all experts that none of so many nodes goes to, if each goes wherever it likes. Real texts use fewer."""
        return 1 - used_share(self.share, nodes)
