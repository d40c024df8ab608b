"""A second, small model drafts, as in classic speculative decoding (Leviathan et al., arXiv 2211.17192).

It is held whole in fast memory with a cache of its own, which follows the accepted text; the tree search is the
common one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ..sequence import TokenSequence
from ..tree import Nodes, TokenTree
from . import TargetModel, Verified
from .proposer import ModelProposer
from .search import SearchSpec

# The most tokens that are read in one forward of the second model.
CATCH_UP = 64


class SecondModelProposer(ModelProposer):
    """A model with a cache of its own, which is kept in step with the accepted text."""

    def prepare(self, sequences: Sequence[TokenSequence]) -> list[int]:
        for sequence in sequences:
            self._catch_up(sequence)
        return super().prepare(sequences)

    def _catch_up(self, sequence: TokenSequence) -> None:
        """Read the accepted tokens that this model has not run yet: the prompt, and what it had not drafted itself."""
        missing = sequence.tokens[self.cache.lengths[sequence.row] : -1]
        for start in range(0, len(missing), CATCH_UP):
            chain = TokenTree.chain(missing[start : start + CATCH_UP])
            with self.device.sharing("level", len(chain)):
                self.forward(Nodes.of(chain, sequence.row, self.cache.lengths[sequence.row]))
            self.cache.keep(sequence.row, torch.arange(len(chain)))

    def observe(self, verified: Verified, ran: Collection[int]) -> None:
        path = [node for node in verified.path.tolist() if node in ran]
        if verified.drafted:
            self.cache.keep(verified.sequence.row, torch.tensor(path, dtype=torch.int64))

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        self.cache.rewind(sequence.row, min(length, self.cache.lengths[sequence.row]))

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None:
        self.cache.copy(row, sequence.row, min(length, self.cache.lengths[row]))


@dataclass(frozen=True, kw_only=True)
class ClassicSpec(SearchSpec):
    """`classic:MODEL`: a tree search with a second model, which is loaded beside the exact one."""

    # The second model: a name, a checkpoint or a Store.
    value: str = ""

    @property
    def second_model(self) -> str:
        return self.value

    def proposer(self, target: TargetModel) -> SecondModelProposer:
        assert target.companion is not None, f"{self.value} was not loaded"
        return SecondModelProposer(target.companion)
