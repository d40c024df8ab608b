"""A proposer without a past, for tests of searches: its logits are a function of token and position."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from understudy.cache import Cache
from understudy.drafters import Verified
from understudy.sequence import TokenSequence
from understudy.tree import Nodes, TokenTree

VOCABULARY, CAPACITY, ROWS = 24, 800, 3


class Fixed:
    """Notes what it was asked to run. `lengths`: where the tree of each cache row begins."""

    device = None

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


def draft(drafter: Any, sequences: Sequence[TokenSequence], lengths: Sequence[int]) -> list[TokenTree]:
    """A draft whose trees begin at `lengths`."""
    rows = [sequence.row for sequence in sequences]
    drafter.proposer.lengths = dict(zip(rows, lengths, strict=True))
    trees: list[TokenTree] = drafter.draft(sequences)
    return trees
