"""An index whose keys stand for several tokens each: the choice of what nodes look at, by blocks of neighbouring tokens.

Stock code makes a key of every `block` tokens of a text, counted from its beginning. A node chooses among the blocks that its path
has whole, and looks at their tokens and at those behind the last of them. The index keeps what blocks are made of at the slot of
each token. At that of a block's last token lies the block's key in its place, which is made when that token comes: so it is of the
path of its node, moves with it, and is made once. Everything is plain torch on a processor, in groups of one size always, so a
node's choice depends on no other node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.attention import ALL, Chosen
from ..kernels.weighted import BLOCK
from ..layer_states import FullState
from ..tree import Nodes

# Blocks whose keys are made together: enough for torch's vectors to be full.
MADE = 32
# Nodes that are scored together, and blocks that each of them is scored with at once.
GROUP, SCORED = 8, 64


@dataclass(frozen=True)
class PooledQuery:
    """What nodes ask an index of blocks."""

    # [n, heads, size]
    queries: Tensor
    # [n, heads]: what each head's products count; None: all count alike
    weights: Tensor | None
    # factor of every product
    scale: float
    # blocks that a node looks at, at most, and tokens of each
    most: int
    block: int
    # keys [m, size] of blocks, of what the index keeps of their tokens [m, block, numbers] and the positions of their first [m]
    pool: Callable[[Tensor, Tensor], Tensor]

    def __getitem__(self, part: slice) -> PooledQuery:
        weights = None if self.weights is None else self.weights[part]
        return replace(self, queries=self.queries[part], weights=weights)

    def choose(self, state: FullState, kept: Tensor, nodes: Nodes) -> Chosen:
        """Put what the index of a layer's `state` keeps of `nodes` [n, numbers] there, with the keys of the blocks that they end;
        returns what each looks at."""
        state.write_index(nodes, kept)
        assert state.index is not None
        self._make_keys(state.index, nodes)
        if (nodes.last + 1) // self.block <= self.most:
            return ALL
        words = [self[i : i + GROUP]._words(state.index, nodes[i : i + GROUP], nodes.last) for i in range(0, len(nodes), GROUP)]
        return Chosen(mask=torch.cat(words)[None])

    def _make_keys(self, index: Tensor, nodes: Nodes) -> None:
        """Put the key of each block that ends with one of `nodes` at the slot of that node. index: [rows, 1, slots, numbers]."""
        ends = (nodes.positions % self.block == self.block - 1).nonzero()[:, 0]
        for first in range(0, len(ends), MADE):
            some = ends[first : first + MADE]
            last = nodes.picked(some)
            start = last.positions - self.block + 1
            slots = last.slots_at(start[:, None] + torch.arange(self.block))
            tokens = index[last.rows[:, None], 0, slots]
            more = MADE - len(some)
            keys = self.pool(nn.functional.pad(tokens, (0, 0, 0, 0, 0, more)), nn.functional.pad(start, (0, more)))
            index[last.rows, 0, last.slots, : keys.shape[1]] = keys[: len(some)].to(index.dtype)

    def _words(self, index: Tensor, nodes: Nodes, longest: int) -> Tensor:
        """What GROUP nodes at most look at, as `Chosen.mask` has it for one head: [n, words]; `longest`: the highest position of
        all nodes of the pass."""
        count, size = len(nodes), self.queries.shape[2]
        whole = (nodes.positions + 1) // self.block
        blocks = -(-((longest + 1) // self.block) // SCORED) * SCORED
        queries = nn.functional.pad(self.queries.float(), (0, 0, 0, 0, 0, GROUP - count))
        scores = queries.new_zeros(count, blocks)
        for first in range(0, int(whole.max()), SCORED):
            numbers = first + torch.arange(SCORED)
            ends = (numbers * self.block + self.block - 1).minimum(nodes.positions[:, None])
            keys = index[nodes.rows[:, None], 0, nodes.slots_at(ends), :size]
            keys = nn.functional.pad(keys.float(), (0, 0, 0, 0, 0, GROUP - count))
            products = (queries @ keys.transpose(1, 2)).relu()[:count]
            scores[:, first : first + SCORED] = self._added(products)
        seen = torch.arange(blocks) < whole[:, None]
        # Stable: of equal ones the earlier.
        order = scores.masked_fill(~seen, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, : self.most]
        taken = torch.zeros_like(seen).scatter_(1, order, True) & seen
        words = longest // BLOCK + 1
        looked = taken.repeat_interleave(self.block, dim=1)[:, : words * BLOCK]
        looked = nn.functional.pad(looked, (0, words * BLOCK - looked.shape[1]))
        places = torch.arange(words * BLOCK)
        looked |= (places >= (whole * self.block)[:, None]) & (places <= nodes.positions[:, None])
        bits = np.packbits(looked.numpy(), axis=1, bitorder="little")
        return torch.from_numpy(bits.view(np.int64))

    def _added(self, products: Tensor) -> Tensor:
        """Scores [n, blocks] of the products [n, heads, blocks] of nodes, one head after another."""
        total = torch.zeros_like(products[:, 0])
        for head in range(products.shape[1]):
            each = products[:, head] * self.scale
            total = total + (each if self.weights is None else each * self.weights[:, head, None].float())
        return total
