"""A proposer without a past, for tests of searches: its logits are a function of token and position. Both searches with it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from tests.fake_device import FakeDevice
from understudy.cache import Cache
from understudy.devices.processor import Processor
from understudy.drafters import Verified
from understudy.drafters.launch import DeviceTreeSearch
from understudy.drafters.pace import Pace
from understudy.drafters.policy import DraftPolicy
from understudy.drafters.search import SearchDrafter
from understudy.drafters.tree_search import TreeSearch
from understudy.plan.widths import padded
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

VOCABULARY, CAPACITY, ROWS = 24, 800, 3


class Fixed:
    """Notes what it was asked to run. `lengths`: where the tree of each cache row begins."""

    device = Processor(threads=1)

    def __init__(self, seed: int, sharp: float):
        chance = torch.Generator().manual_seed(seed)
        self.table = torch.randn(8, VOCABULARY, VOCABULARY, generator=chance) * sharp
        self.cache = Cache([], ROWS, CAPACITY, torch.float32)
        self.lengths: Mapping[int, int] = {}
        self.ran: list[Nodes] = []
        self.observed: list[tuple[Verified, Collection[int]]] = []

    def prepare(self, sequences: Sequence[TokenSequence]) -> list[int]:
        return [self.lengths[sequence.row] for sequence in sequences]

    def forward(self, nodes: Nodes) -> Tensor:
        copies = (getattr(nodes, field.name).clone() for field in fields(nodes))
        self.ran.append(Nodes(*copies))  # the search goes on in the same memory
        return self.table[nodes.positions % 8, nodes.tokens]

    def observe(self, verified: Verified, ran: Collection[int]) -> None:
        self.observed.append((verified, ran))

    def rewind(self, sequence: TokenSequence, length: int) -> None: ...

    def copy(self, row: int, sequence: TokenSequence, length: int) -> None: ...

    def reach(self, row: int, length: int) -> int:
        return length


def draft(drafter: Any, sequences: Sequence[TokenSequence], lengths: Sequence[int]) -> list[TokenTree]:
    """A draft whose trees begin at `lengths`."""
    rows = [sequence.row for sequence in sequences]
    drafter.proposer.lengths = dict(zip(rows, lengths, strict=True))
    trees: list[TokenTree] = drafter.draft(sequences)
    return trees


def said(note: str) -> None:
    raise AssertionError(note)


def host(model: Fixed, policy: DraftPolicy) -> SearchDrafter:
    return SearchDrafter(model, TreeSearch(model, policy), policy)


class Unaided(FakeDevice):
    """It has no kernels for searches, so that torch's operations do them."""

    def search_kernels(self) -> None:
        return None


def device(model: Fixed, policy: DraftPolicy, where: FakeDevice | None = None) -> SearchDrafter:
    return SearchDrafter(model, DeviceTreeSearch(model, where or Unaided(), policy, said), policy)


def everything(drafter: SearchDrafter, trees: Sequence[TokenTree]) -> list[Any]:
    """Trees, and what will be learned from them."""
    found: list[Any] = []
    for tree, grown in zip(trees, drafter.trees.values(), strict=True):
        found.append((tree.tokens.tolist(), tree.parents.tolist(), grown.children, grown.deepest))
    return found


class Steady(Pace):
    """Costs are as given: what levels really took says nothing."""

    def record_level(self, width: int, seconds: float) -> None: ...


def costing(cost: Sequence[float], rate: float) -> Pace:
    """Levels that cost what their padded width costs; no level takes longer than a wider one."""
    by_width = sorted(cost)
    return Steady({n: by_width[int(math.log2(padded(n)))] for n in range(1, 65)}, rate=rate)
