"""A batch: everything that one pass of the target runs, whoever it is for.

Drafted trees of sequences that are decoding and chunks of prompts that are being read lie side by side in it, so one sweep of
the weights serves them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .adjust import Adjustment
from .sampling import choose
from .sequence import TokenSequence
from .tree import Nodes, TokenTree

NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Member:
    """The nodes that one sequence has in a pass: a drafted tree, or a chunk of tokens it has not read yet."""

    sequence: TokenSequence
    # A chunk is a chain of known tokens.
    tree: TokenTree
    # How many of the last nodes the target chooses a token after: all of a draft, 1 or 0 of a chunk.
    wanted: int
    reads: bool

    @classmethod
    def draft(cls, sequence: TokenSequence, tree: TokenTree) -> Member:
        """Verify every node of `tree`, which is rooted at the last token of `sequence`."""
        return cls(sequence, tree, len(tree), False)

    @classmethod
    def chunk(cls, sequence: TokenSequence, tokens: Sequence[int], last: bool) -> Member:
        """Read `tokens`; after the `last` chunk of a text its next token is chosen."""
        return cls(sequence, TokenTree.chain(tokens), int(last), True)


    @cached_property
    def adjustment(self) -> Adjustment | None:
        """What is done to the logits of the wanted nodes before a choice; None: nothing. A chunk wants none but its text's end."""
        return Adjustment.of(self.sequence, lambda: [[]] if self.reads else self.tree.paths)


@dataclass(frozen=True)
class Batch:
    """The nodes of a pass, the nodes whose logits are wanted, and the sequence that each of them belongs to."""

    members: tuple[Member, ...]
    # All nodes of all members, in the order of `members`.
    nodes: Nodes
    # [m] int64, ascending: indices of the nodes after which a token is chosen.
    wanted: Tensor
    # [m] int64: the positions of those tokens.
    after: Tensor

    @classmethod
    def of(cls, members: Sequence[Member], lengths: Sequence[int]) -> Batch:
        """The batch of `members`; `lengths[row]` tokens of a cache row are accepted. There must be at least one member."""
        nodes = Nodes.join([Nodes.of(member.tree, member.sequence.row, lengths[member.sequence.row]) for member in members])
        wanted = []
        end = 0
        for member in members:
            end += len(member.tree)
            wanted.append(torch.arange(end - member.wanted, end))
        joined = torch.cat(wanted)
        return cls(tuple(members), nodes, joined, nodes.positions[joined] + 1)

    def choose(self, logits: Tensor, start: int) -> Tensor:
        """[k] int64 on the CPU: the token after each of `wanted[start : start + k]`, whose logits [k, vocab] are given."""
        end = start + len(logits)
        chosen = []
        for member, first, last in self._spans():
            low, high = max(first, start), min(last, end)
            if low < high:
                after = self.after[low:high].to(logits.device)
                adjust = None if member.adjustment is None else member.adjustment.after(low - first)
                chosen.append(choose(logits[low - start : high - start], member.sequence.params, after, adjust).cpu())
        return torch.cat(chosen)

    def _spans(self) -> Iterator[tuple[Member, int, int]]:
        """Each member with the first and the end of its places in `wanted`."""
        first = 0
        for member in self.members:
            yield member, first, first + member.wanted
            first += member.wanted

    def split(self, choices: Tensor) -> list[tuple[Member, Tensor]]:
        """Each member with its own part of `choices` [m], the tokens chosen after the wanted nodes."""
        if not len(self.wanted):
            choices = NOTHING
        return list(zip(self.members, torch.split(choices, [member.wanted for member in self.members]), strict=True))

    def split_hidden(self, hidden: Tensor | None) -> list[Tensor | None]:
        """For each member its own part of `hidden` [n, ...], hidden states of all nodes; None where there are none."""
        if hidden is None:
            return [None] * len(self.members)
        return list(torch.split(hidden, [len(member.tree) for member in self.members]))
