"""A trained head proposes: `medusa:HEAD`, `clover:HEAD`, `clover2:HEAD`, `eagle:HEAD` and `eagle3:HEAD`.

The root of a tree is read with the target's true hidden state, as the whole text before it is. Below it a node's state is made of
its parent's, so no level may hold a node and its parent: nothing is guessed from the text, which only speaks for likely tokens.
The host runs the search on every device; the head lies where the target does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..heads.files import located
from ..heads.held import check_bits
from ..heads.source import Bearer
from ..sequence import TokenSequence
from ..tree import Nodes
from . import OwnCache, TargetModel, Verified
from .growing_tree import MOST_NODES
from .head_state import HeadState
from .policy import DraftPolicy
from .proposer import Proposer
from .search import Search, SearchSpec
from .start import Start
from .suggest import Suggester, TextSpeaker
from .trained import BITS, HeadChoice, NamedHead, opened

# A tree's nodes lie in so many slots, one after another, whose numbers differ by this remainder.
PLACES = MOST_NODES + 1


class HeadProposer:
    """Proposes with the head of `state`, whose cache is kept in step with the text of each row."""

    def __init__(self, state: HeadState, target: TargetModel):
        self.state = state
        self.runner = state.runner
        self.target = target
        self.cache = state.cache
        self.device = target.device
        head = self.runner.head
        self.deepest = min(head.config.heads or self.cache.deepest, self.cache.deepest)
        # By row: the number of the last token of its text, the root of its tree.
        self.roots = torch.zeros(self.cache.rows, dtype=torch.int64)
        # By row and slot % PLACES: the states of a tree's nodes.
        shape = self.cache.rows, PLACES, head.state_size
        self.states = torch.zeros(shape, dtype=target.dtype, device=self.device.where)

    def prepare(self, sequences: Sequence[TokenSequence]) -> list[int]:
        states = self.state.read(sequences)
        for sequence in sequences:
            root = len(sequence.tokens) - 1
            if sequence.row in states:
                self.states[sequence.row, root % PLACES] = states[sequence.row]
            self.roots[sequence.row] = root
        return [len(sequence.tokens) - 1 for sequence in sequences]

    def forward(self, nodes: Nodes) -> Tensor:
        """As `Proposer.forward`. Each depth is a call of its own where the head has a part of its own for each."""
        depths = nodes.positions - self.roots[nodes.rows]
        calls = depths.clamp(max=1) if self.runner.head.alike else depths
        kinds = sorted({*calls.tolist()})
        if len(kinds) == 1:
            return self._level(nodes, kinds[0])
        logits: Tensor | None = None
        for depth in kinds:
            places = (calls == depth).nonzero()[:, 0]
            own = self._level(nodes.picked(places), depth)
            logits = own.new_empty(len(nodes), own.shape[1]) if logits is None else logits
            logits[places.to(own.device)] = own
        assert logits is not None
        return logits

    def _level(self, nodes: Nodes, depth: int) -> Tensor:
        """Logits after nodes that lie `depth` edges below the roots; 1 stands for any depth where that makes no difference."""
        if depth == 0:
            states = self.states[nodes.rows, nodes.slots % PLACES]
        else:
            states = self.runner.follow(nodes, self.states[nodes.rows, nodes.parents % PLACES], depth)
            self.states[nodes.rows, nodes.slots % PLACES] = states
        return self.runner.logits(states, depth)

    def observe(self, verified: Verified, ran: Collection[int]) -> None:
        self.state.observe(verified)

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        self.state.rewind(sequence.row, length)

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None:
        self.state.copy(row, sequence.row, length)

    def reach(self, row: int, length: int) -> int:
        return self.state.reach(row, length)

    @property
    def own_cache(self) -> OwnCache:
        return self.state.own_cache


@dataclass(frozen=True, kw_only=True)
class TrainedSpec(SearchSpec):
    """A tree search with a trained head, wherever that comes from."""

    # Of the head's weights where it drafts: 4, 8, or 16, which is as the model computes.
    bits: int = BITS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self.bits, "bits")
        if self.guess == "on":
            raise UsageError("guess=on is for models that draft: a trained head needs the states before each node.")

    @property
    @abstractmethod
    def head(self) -> HeadChoice: ...

    def proposer(self, target: TargetModel) -> HeadProposer:
        source = self.head.source(Bearer.of_store(target.store, target.config))
        return HeadProposer(opened(source, target, self.bits), target)

    def suggester(self, proposer: Proposer) -> Suggester | None:
        return None if self.guess == "off" or self.forced else TextSpeaker()

    def _search(self, proposer: Proposer, policy: DraftPolicy, target: TargetModel) -> Search:
        from .tree_search import TreeSearch

        return TreeSearch(proposer, policy, self.suggester(proposer))


@dataclass(frozen=True, kw_only=True)
class HeadSpec(TrainedSpec):
    """A trained head of one `kind`, which lies in a directory of its own or on the hub."""

    kind: ClassVar[str]
    # The head: a directory, or the id of a model of the hub.
    value: str = ""

    @cached_property
    def head(self) -> NamedHead:
        return NamedHead(self.kind, self.value, self.bits)

    def located(self, offline: bool) -> HeadSpec:
        return replace(self, value=str(located(self.value, offline))) if self.value else self

    @property
    def heads(self) -> int:
        """How many tokens ahead the head can see; 0: as many as pay."""
        return self.head.directory.config.heads if self.value else 0

    @property
    def taps(self) -> tuple[int, ...]:
        return self.head.directory.config.taps if self.value else ()

    @property
    def holds_head(self) -> bool:
        return bool(self.value) and self.head.needs_target_output

    @property
    def deepest(self) -> int:
        return self.depth or self.heads

    def check(self, bearer: Bearer) -> None:
        super().check(bearer)
        if self.heads and self.depth > self.heads:
            raise UsageError(f"depth={self.depth} is too deep: the head {self.value} drafts {self.heads} levels at most.")

    @property
    def start(self) -> Start:
        return Start.beside(Path(self.value))


@dataclass(frozen=True, kw_only=True)
class MedusaSpec(HeadSpec):
    """`medusa:HEAD` (Cai et al., arXiv 2401.10774)."""

    kind = "medusa"


@dataclass(frozen=True, kw_only=True)
class CloverSpec(HeadSpec):
    """`clover:HEAD` (Xiao et al., arXiv 2405.00263)."""

    kind = "clover"


@dataclass(frozen=True, kw_only=True)
class Clover2Spec(HeadSpec):
    """`clover2:HEAD` (Xiao et al., arXiv 2408.00264)."""

    kind = "clover2"


@dataclass(frozen=True, kw_only=True)
class EagleSpec(HeadSpec):
    """`eagle:HEAD` (Li et al., arXiv 2401.15077), of any depth."""

    kind = "eagle"


@dataclass(frozen=True, kw_only=True)
class Eagle3Spec(HeadSpec):
    """`eagle3:HEAD` (Li et al., arXiv 2503.01840)."""

    kind = "eagle3"
