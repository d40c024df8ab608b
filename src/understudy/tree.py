"""The token tree. A prompt, one token and a draft are all trees, so everything the target runs has this one type.

Invariant: a parent's index is smaller than its child's, and node i of a row's tree lives at cache slot `length + i`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftCounts:
    """What it took to draft a tree."""

    # Levels that had nodes of it and that the pass waited for.
    levels: int = 0
    # Nodes that all its levels ran, wrong guesses among them.
    nodes: int = 0
    # By source: suggested tokens that were checked, and those that the proposer said too.
    suggested: Mapping[str, int] = field(default_factory=dict)
    agreed: Mapping[str, int] = field(default_factory=dict)
    # Levels that were run beside the pass before, and whether the tree went on from them or they were dropped.
    ahead_levels: int = 0
    ahead_used: int = 0
    ahead_dropped: int = 0


UNCOUNTED = DraftCounts()


@dataclass(frozen=True)
class TokenTree:
    """`tokens[i]` follows `tokens[parents[i]]`; node 0 is the root (parent -1), the one token not yet in the cache.

    tokens, parents: [n] int64 on the CPU. Trees are a few hundred nodes; prompts are chains of any length."""

    tokens: Tensor
    parents: Tensor
    # Of a tree that levels were run for.
    counts: DraftCounts = UNCOUNTED

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> TokenTree:
        return cls(torch.tensor(tokens, dtype=torch.int64), torch.arange(-1, len(tokens) - 1))

    @classmethod
    def of(cls, tokens: Sequence[int], parents: Sequence[int], counts: DraftCounts = UNCOUNTED) -> TokenTree:
        tree = cls(torch.tensor(tokens, dtype=torch.int64), torch.tensor(parents, dtype=torch.int64), counts)
        assert bool((tree.parents < torch.arange(len(tree))).all()), f"a parent comes after its child: {parents}"
        return tree

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        return bool((self.parents == torch.arange(-1, len(self) - 1)).all())

    @cached_property
    def ancestors(self) -> Tensor:
        """[n, n] bool: is node j on the path from the root to node i (both ends included)? By pointer doubling."""
        n = len(self)
        reach = torch.eye(n, dtype=torch.bool)
        jump = self.parents.clone()
        while bool((jump >= 0).any()):
            alive = jump >= 0
            reach[alive] |= reach[jump[alive]]
            jump = torch.where(alive, jump[jump.clamp(min=0)], jump)
        return reach

    @cached_property
    def paths(self) -> list[list[int]]:
        """For each node the tokens between the root and it: its own is the last, that of the root is not among them."""
        return paths(self.tokens.tolist(), self.parents.tolist())

    @cached_property
    def _children(self) -> dict[tuple[int, int], int]:
        pairs = zip(self.parents.tolist(), self.tokens.tolist(), strict=True)
        return {pair: node for node, pair in reversed([*enumerate(pairs)])}

    def child(self, node: int, token: int) -> int:
        """The first node that follows `node` with `token`; `len(self)` where there is none."""
        return self._children.get((node, token), len(self))

    @cached_property
    def depths(self) -> Tensor:
        """[n] int64: edges between the root and each node."""
        return torch.arange(len(self)) if self.is_chain else self.ancestors.sum(1) - 1


class AcceptedPath:
    """`nodes` [m] of a tree, root first, that become the next m accepted tokens. Which of them move is worked out once for all
    layers."""

    def __init__(self, nodes: Tensor) -> None:
        self.nodes = nodes
        moved = nodes != torch.arange(len(nodes))
        # [2, k]: where nodes go that do not lie there, and where they lie, counted from the root
        self._moves = torch.stack([torch.arange(len(nodes))[moved], nodes[moved]]) if bool(moved.any()) else None
        self._slots: dict[tuple[int, torch.device], Tensor] = {}

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def straight(self) -> int:
        """Nodes, from the root on, that lie where they go."""
        return len(self) if self._moves is None else int(self._moves[0, 0])

    def moves(self, length: int, where: torch.device) -> Tensor | None:
        """[2, k] on the device `where`: slots to write and to read, of a root at slot `length`; None where nothing moves."""
        if self._moves is None:
            return None
        if (length, where) not in self._slots:
            self._slots[length, where] = (length + self._moves).to(where)
        return self._slots[length, where]


@dataclass(frozen=True)
class Nodes:
    """Tree nodes of one or many rows, flat: what one forward pass runs.

    tokens, rows, slots, positions: [n] int64. A node sees its row's positions 0..position: those below `prefix` lie at the slot of
    the same number, position `prefix + j` lies at slot `tail[n, j]` (-1 beyond the node itself)."""

    tokens: Tensor
    rows: Tensor
    slots: Tensor
    positions: Tensor
    prefix: Tensor
    tail: Tensor

    @cached_property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """rows, positions, prefix and tail as numpy arrays, for nodes in memory of the host."""
        return self.rows.numpy(), self.positions.numpy(), self.prefix.numpy(), self.tail.numpy()

    @cached_property
    def last(self) -> int:
        """The highest position."""
        return int(self.positions.max())

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, tree: TokenTree, row: int, length: int, first: int = 0) -> Nodes:
        """The nodes of `tree` from `first` on, in a row whose cache holds `length` tokens."""
        n = len(tree)
        index = torch.arange(n)
        positions = length + tree.depths
        if tree.is_chain:
            prefix, tail = positions + 1, torch.empty(n, 0, dtype=torch.int64)
        else:
            prefix, tail = _tails(tree, length)
        rows = torch.full((n,), row, dtype=torch.int64)
        return cls(tree.tokens, rows, length + index, positions, prefix, tail)[first:]

    def __getitem__(self, part: slice) -> Nodes:
        return Nodes(
            self.tokens[part], self.rows[part], self.slots[part], self.positions[part], self.prefix[part], self.tail[part]
        )

    def picked(self, places: Tensor) -> Nodes:
        """Those at `places` [m], ascending."""
        kept = (self.tokens, self.rows, self.slots, self.positions, self.prefix, self.tail)
        return Nodes(*(tensor[places] for tensor in kept))

    @property
    def parents(self) -> Tensor:
        """[n] the slots at which their parents lie, of nodes that have one."""
        before = self.positions - 1
        if not self.tail.shape[1]:
            return before
        off = before - self.prefix
        return torch.where(off < 0, before, self.tail.gather(1, off.clamp(min=0)[:, None])[:, 0])

    def to(self, device: torch.device | str) -> Nodes:
        """The same nodes in the memory of `device`."""
        return self.moved(lambda kept: [tensor.to(device) for tensor in kept])

    def moved(self, bring: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Nodes:
        """The same nodes where `bring` gives tensors back."""
        return Nodes(*bring((self.tokens, self.rows, self.slots, self.positions, self.prefix, self.tail)))

    @classmethod
    def join(cls, several: Sequence[Nodes]) -> Nodes:
        if len(several) == 1:
            return several[0]
        wide = max(nodes.tail.shape[1] for nodes in several)
        tails = [torch.nn.functional.pad(nodes.tail, (0, wide - nodes.tail.shape[1]), value=-1) for nodes in several]
        return cls(
            torch.cat([nodes.tokens for nodes in several]),
            torch.cat([nodes.rows for nodes in several]),
            torch.cat([nodes.slots for nodes in several]),
            torch.cat([nodes.positions for nodes in several]),
            torch.cat([nodes.prefix for nodes in several]),
            torch.cat(tails),
        )

    def within(self, chunk: int, width: int | None = None) -> Nodes:
        """The same nodes as attention sees them that looks back to the beginning of a node's chunk of so many positions alone: as
        if texts began there, with all of their slots off the straight line. `width`: that of their tails, where the highest
        position must not be asked for."""
        start = self.positions // chunk * chunk
        if width is None:
            if self.last < chunk:
                return self
            width = int((self.positions - start).max()) + 1
        places = start[:, None] + torch.arange(width, device=start.device)
        slots = torch.where(places <= self.positions[:, None], self.slots_at(places), -1)
        return Nodes(self.tokens, self.rows, self.slots, self.positions - start, torch.zeros_like(self.prefix), slots)

    def seeing(self, slots: Tensor) -> Nodes:
        """The same nodes as attention sees them that looks at some tokens alone: at `slots` [n, m], -1 after the last of them, in
        the order of their positions."""
        return Nodes(self.tokens, self.rows, self.slots, (slots >= 0).sum(1) - 1, torch.zeros_like(self.prefix), slots)

    def slots_at(self, positions: Tensor) -> Tensor:
        """[n, m]: where the cache holds each of `positions` [n, m] on the path of each node; any slot for those beyond the node."""
        if not self.tail.shape[1]:
            return positions
        off = positions - self.prefix[:, None]
        return torch.where(off < 0, positions, self.tail.gather(1, off.clamp(0, self.tail.shape[1] - 1)))

    def slots_in_order(self, node: int) -> Tensor:
        """[position + 1]: where the cache holds each position this node sees, in the order of positions."""
        prefix, position = int(self.prefix[node]), int(self.positions[node])
        return torch.cat([torch.arange(prefix), self.tail[node, : position + 1 - prefix]])


def paths(tokens: Sequence[int], parents: Sequence[int]) -> list[list[int]]:
    """For each node of a tree the tokens between the root and it, as `TokenTree.paths`."""
    found: list[list[int]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append([] if parent < 0 else [*found[parent], token])
    return found


def _tails(tree: TokenTree, length: int) -> tuple[Tensor, Tensor]:
    """prefix [n] and tail [n, t] of a branching tree: the path from the first node that is off the straight line from the root."""
    straight = tree.depths == torch.arange(len(tree))
    straight = straight & ~(tree.ancestors & ~straight).any(1)
    off = tree.ancestors & ~straight
    counts = off.sum(1)
    tail = torch.full((len(tree), int(counts.max())), -1, dtype=torch.int64)
    node, ancestor = off.nonzero(as_tuple=True)
    place = torch.arange(len(node)) - (counts.cumsum(0) - counts)[node]
    tail[node, place] = length + ancestor
    return length + tree.depths + 1 - counts, tail
