"""A drafter that searches trees: a `Proposer` says what may follow a node, a `Search` decides which nodes are asked.

The substitute and a second model are proposers under the same search; on the processor that is `tree_search`, on a
device with memory of its own `launch`."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ..errors import UsageError
from ..registry import lookup
from ..sequence import TokenSequence
from ..tree import TokenTree
from . import DrafterSpec, OwnCache, TargetModel, Verified
from .growing_tree import MOST_NODES, GrowingTree
from .pace import WIDEST
from .policy import DraftPolicy, Limits, Shape
from .proposer import Proposer
from .start import START, Start
from .suggest import WHEN, Suggester, TextSuggester

if TYPE_CHECKING:
    from .ahead import AheadSearch

# Widths of levels that are measured before the first draft, and the seconds that this may take.
MEASURED_WIDTHS = (1, 2, 4, 8)
MEASURING_SECONDS = 1.0


class Search(Protocol):
    """Grows trees level by level. It shares the policy with its drafter, and nothing else."""

    @property
    def widest(self) -> int:
        """The most nodes of a level."""

    def run(self, trees: list[GrowingTree]) -> None:
        """Add levels to trees of one node each, as long as they pay."""

    def measure(self, width: int) -> float:
        """Seconds of a level of `width` nodes that leaves nothing behind. No sequence may be under way."""


class SearchDrafter:
    """Trees of `search`, filled up with nodes that ride along; `policy` learns from what is accepted. `apart`: drafts for several
    groups of texts may be made at the same time. `ahead`: what runs `search` beside passes too; None: nothing does."""

    def __init__(
        self, proposer: Proposer, search: Search, policy: DraftPolicy, apart: bool = False, ahead: AheadSearch | None = None
    ):
        self.proposer = proposer
        self.search = search
        self.policy = policy
        self.apart = apart
        self.ahead = ahead
        # The latest tree of each sequence, by cache row.
        self.trees: dict[int, GrowingTree] = {}

    def split(self, groups: int, texts: int) -> bool:
        policy, latest = self.policy, self._latest
        policy.split(groups if self.apart else 1)
        if not policy.most_nodes:
            policy.split(1)
        if policy.groups > 1:
            policy.serve(-(-texts // groups), latest)
            self.trees = {}
        return policy.groups == groups

    @property
    def _latest(self) -> int:
        """Nodes of all trees of the latest round, or of one group's."""
        return sum(len(tree.tokens) for tree in self.trees.values()) // self.policy.groups

    def draft(self, sequences: Sequence[TokenSequence]) -> list[TokenTree]:
        with self.policy.turn:
            trees = self._roots(sequences)
        (self.search if self.ahead is None else self.ahead).run(trees)
        with self.policy.turn:
            self.policy.fill(trees)
        return [tree.tree for tree in trees]

    def _roots(self, sequences: Sequence[TokenSequence]) -> list[GrowingTree]:
        """A tree of one node for each sequence."""
        lengths = self.proposer.prepare(sequences)
        limits = self.policy.limits
        trees = [
            GrowingTree(sequence, length, sequence.tokens[-1:], most_nodes=limits.tree, most_levels=limits.levels)
            for sequence, length in zip(sequences, lengths, strict=True)
        ]
        if self.policy.groups == 1:
            if trees:
                self.policy.serve(len(trees), self._latest)
            self.trees = {}
        self.trees |= {tree.sequence.row: tree for tree in trees}
        return trees

    def meanwhile(self) -> AbstractContextManager[object]:
        return nullcontext() if self.ahead is None else self.ahead.meanwhile(list(self.trees.values()))

    def observe(self, verified: Verified) -> None:
        ran: Collection[int] = ()
        if verified.drafted:
            tree = self.trees[verified.sequence.row]
            ran = tree.children
            self.policy.learn(tree, verified.path, verified.choices)
        self.proposer.observe(verified, ran)

    def rewind(self, sequence: TokenSequence, length: int) -> None:
        if self.ahead is not None:
            self.ahead.forget(sequence)
        self.proposer.rewind(sequence, length)

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None:
        self.proposer.copy(row, sequence, length)

    def reach(self, row: int, length: int) -> int:
        return self.proposer.reach(row, length)

    @property
    def own_cache(self) -> OwnCache | None:
        return self.proposer.own_cache

    def record_round(self, tokens: int, seconds: float, *, prefill: bool) -> None:
        self.policy.record_round(tokens, seconds, prefill)
        if self.ahead is not None and not prefill:
            self.ahead.record_round(tokens, seconds)

    def warm(self, widths: Sequence[int] = MEASURED_WIDTHS, seconds: float = MEASURING_SECONDS) -> None:
        """Measure levels of `widths`, so that the first tree has a sensible shape. Cache row 0 must be empty."""
        if self.policy.limits.levels < 2:
            # Roots alone are run.
            return
        deadline = time.perf_counter() + seconds
        for width in widths:
            if width > self.search.widest:
                break
            taken = [self.search.measure(width) for _ in range(3)]  # the first may compile, or record
            self.policy.pace.levels[width] = min(taken)
            if time.perf_counter() + 4 * taken[-1] > deadline:
                break


@dataclass(frozen=True, kw_only=True)
class SearchSpec(DrafterSpec):
    """The options of every drafter that searches trees. A subclass says who proposes."""

    # A forced shape: so many nodes in each level, so many levels; 0: both are decided by what pays.
    width: int = 0
    depth: int = 0
    # Are tokens that the text itself suggests checked? "auto": where levels may hold a node and its parent.
    guess: str = "auto"

    def __post_init__(self) -> None:
        width, depth = self.width, self.depth
        if bool(width) != bool(depth) or width < 0 or depth < 0:
            raise UsageError(f"A forced shape needs both width and depth, 1 or more; got width={width}, depth={depth}.")
        lookup("guess", self.guess, dict.fromkeys(WHEN, 0))
        if depth and self.guess == "on":
            raise UsageError(
                "guess=on makes no sense with a forced width and depth: nothing is taken from the text there."
            )

    @property
    def forced(self) -> bool:
        return self.depth > 0

    @property
    def level_width(self) -> int:
        return min(self.width, MOST_NODES) or WIDEST

    @property
    def deepest(self) -> int:
        return self.depth

    @property
    def max_nodes(self) -> int:
        return min(1 + self.width * self.depth, MOST_NODES) if self.forced else 0

    @abstractmethod
    def proposer(self, target: TargetModel) -> Proposer:
        """Who proposes, for what `target` verifies."""

    def suggester(self, proposer: Proposer) -> Suggester | None:
        """Who suggests tokens for `proposer` to check."""
        return None if self.guess == "off" or self.forced else TextSuggester()

    def run_ahead(self, search: Search, target: TargetModel) -> AheadSearch | None:
        """What runs `search` beside passes of `target` too; None: nothing does."""
        return None

    @property
    def start(self) -> Start:
        """What is expected before the first pass."""
        return START

    def open(self, target: TargetModel) -> SearchDrafter:
        """The drafter, which has measured what its levels cost."""
        proposer = self.proposer(target)
        caches = (proposer.cache, target.cache)
        limits = Limits(
            proposer.cache.capacity, target.tree_nodes, target.cost, target.filling,
            tree=min(MOST_NODES, *(cache.scratch for cache in caches)), levels=min(proposer.deepest, target.cache.deepest),
        )  # fmt: skip
        policy = DraftPolicy(limits, Shape(self.width, self.depth), start=self.start)
        search = self._search(proposer, policy, target)
        drafter = SearchDrafter(proposer, search, policy, self.apart, self.run_ahead(search, target))
        drafter.warm()
        return drafter

    def _search(self, proposer: Proposer, policy: DraftPolicy, target: TargetModel) -> Search:
        from .group_search import GroupSearch
        from .launch import DeviceTreeSearch
        from .tree_search import TreeSearch

        device = proposer.device
        if device.drafts_see_text:
            return TreeSearch(proposer, policy, self.suggester(proposer))
        suggester = self.suggester(proposer)
        if proposer.cache.recurrent:
            # Levels of theirs hold no node and its parent, or the host would wait.
            if self.guess == "on":
                raise UsageError(f"guess=on is not for models with recurrent layers that draft on {device.name}: leave it out.")
            suggester = None
        opened = partial(DeviceTreeSearch, proposer, device, policy, target.say, suggester=suggester)
        search = GroupSearch(opened(), opened, policy) if self.apart and target.groups > 1 else opened()
        target.drops.append(search.drop)
        return search
