"""An index whose keys stand for several tokens each: the choice of what nodes look at, by blocks of neighbouring tokens.

Stock code makes a key of every `block` tokens of a text, counted from its beginning. A node chooses among the blocks that its path
has whole, and looks at their tokens and at those behind the last of them. The index keeps what blocks are made of at the slot of
each token. At that of a block's last token lies the block's key in its place, which is made when that token comes: so it is of the
path of its node, moves with it, and is made once. Everything is plain torch on a processor, in products of one shape always, so a
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
# Blocks that a node is scored with at once.
SCORED = 128
# Products of nodes' heads and blocks that are held at once.
MOST = 1 << 18


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
        each = max(MOST // (self.queries.shape[1] * self._blocks(nodes.last)), 1)
        parts = [slice(i, i + each) for i in range(0, len(nodes), each)]
        scores = (self[part]._scores(state.index, nodes[part], nodes.last) for part in parts)
        masks = [self._looked_at(own, nodes[part], nodes.last) for part, own in zip(parts, scores, strict=True)]
        return Chosen(mask=torch.cat(masks)[None])

    def _blocks(self, longest: int) -> int:
        """Blocks that are scored of a text up to the position `longest`: a multiple of those that are at once."""
        return -(-((longest + 1) // self.block) // SCORED) * SCORED

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

    def _scores(self, index: Tensor, nodes: Nodes, longest: int) -> Tensor:
        """The score of each block up to the position `longest` for each of `nodes` [n, blocks], -inf where it has not the whole."""
        whole, size = (nodes.positions + 1) // self.block, self.queries.shape[2]
        queries, blocks = self.queries.float(), self._blocks(longest)
        ends = torch.arange(blocks) * self.block + self.block - 1
        slots = nodes.slots_at(ends.minimum(nodes.positions[:, None]))
        facts = list(zip(*(each.tolist() for each in (nodes.rows, nodes.prefix, whole)), strict=True))
        products = torch.zeros(len(nodes), queries.shape[1], blocks)
        for first in range(0, blocks, SCORED):
            part = slice(first, first + SCORED)
            last, held, keys = int(ends[part][-1]), -1, torch.empty(0)
            for node, (row, prefix, count) in enumerate(facts):
                if count <= first:
                    continue
                straight = prefix > last
                if not straight or held != row:
                    keys = index[row, 0, slots[node, part], :size].float()
                    held = row if straight else -1
                # each alone, in one shape always
                products[node, :, part] = queries[node] @ keys.T
        return self._added(products.relu_()).masked_fill_(torch.arange(blocks) >= whole[:, None], -torch.inf)

    def _added(self, products: Tensor) -> Tensor:
        """Scores [n, blocks] of the products [n, heads, blocks] of nodes, one head after another."""
        total = torch.zeros_like(products[:, 0])
        for head in range(products.shape[1]):
            each = products[:, head] * self.scale
            total += each if self.weights is None else each * self.weights[:, head, None].float()
        return total.nan_to_num_(-torch.inf, torch.inf, -torch.inf)

    def _looked_at(self, scores: Tensor, nodes: Nodes, longest: int) -> Tensor:
        """What `nodes` with these `scores` look at up to the position `longest`, as a head of `Chosen.mask` has it: [n, words]."""
        most = min(self.most, scores.shape[1])
        least = scores.topk(most, dim=1).values[:, -1:]
        more, equal = scores > least, scores == least
        # of equal ones the earlier
        taken = more | (equal & (equal.cumsum(1) <= most - more.sum(1, keepdim=True)))
        whole = ((nodes.positions + 1) // self.block)[:, None]
        taken &= torch.arange(scores.shape[1]) < whole
        words = longest // BLOCK + 1
        looked = taken.repeat_interleave(self.block, dim=1)[:, : words * BLOCK]
        looked = nn.functional.pad(looked, (0, words * BLOCK - looked.shape[1]))
        places = torch.arange(words * BLOCK)
        looked |= (places >= whole * self.block) & (places <= nodes.positions[:, None])
        bits = np.packbits(looked.numpy(), axis=1, bitorder="little")
        return torch.from_numpy(bits.view(np.int64))
