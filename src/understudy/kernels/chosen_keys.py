"""The tokens that a layer looks at, where an index chooses them by what they hold: DeepSeek Sparse Attention (arXiv 2512.02556).

A token's score is a sum over the heads of the index: the weight of a head, times the product of the node's query and the token's
key where that is positive. The tokens of the highest scores are looked at, of equal ones the earlier. A node's choice depends on no
other node: every sum runs in one order, over blocks of 64 absolute positions or, where there is no kernel, in one shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..tree import Nodes
from .attention import ALL, Chosen, bits_of_slab
from .attention_cpu import ALL_PLACES
from .compiled import contracted
from .gathered import gather
from .running_softmax import lines
from .weighted import BLOCK, combine_rows

# Nodes that `choose_anywhere` takes together.
GROUP = 8
# Products of a query and a key; below about a millisecond, sharing the nodes out costs more than it saves.
WORTH_SHARING = 4_000_000


@dataclass(frozen=True)
class IndexQuery:
    """What nodes ask the index of a layer."""

    # [n, heads, size] of any type
    queries: Tensor
    # [n, heads]: what each head's products count, without `scale`
    weights: Tensor
    # factor of every product
    scale: float
    # tokens that a node looks at, at most
    most: int

    def __getitem__(self, part: slice) -> IndexQuery:
        return IndexQuery(self.queries[part], self.weights[part], self.scale, self.most)


def choose(
    asked: IndexQuery, keys: Tensor, nodes: Nodes, *, pool: ThreadPoolExecutor | None = None, threads: int = 1
) -> Chosen:
    """What each of `nodes` looks at, on a processor; they are shared out over `threads` of `pool`.

    keys: a layer's index [rows, 1, slots, size], which already holds the nodes' own."""
    if nodes.last < asked.most:
        return ALL
    q = asked.queries.float().contiguous().numpy()
    weights, slab = asked.weights.float().contiguous().numpy(), bits_of_slab(keys)
    mask = np.empty((len(q), nodes.last // BLOCK + 1), np.uint64)

    def share_of(first: int, end: int) -> None:
        rows, positions, prefix, tail = (array[first:end] for array in nodes.arrays)
        seen = rows, positions, prefix, tail
        _choose(q[first:end], weights[first:end], np.float32(asked.scale), asked.most, slab, seen, mask[first:end])

    if pool is None or threads < 2 or q.size * (nodes.last + 1) < WORTH_SHARING:
        share_of(0, len(q))
    else:
        edges = [len(q) * i // threads for i in range(threads + 1)]
        list(pool.map(share_of, *zip(*pairwise(edges), strict=True)))
    return Chosen(mask=torch.from_numpy(mask.view(np.int64)))


@contracted
def _choose(queries: Any, weights: Any, scale: Any, most: int, keys: Any, seen: Any, mask: Any) -> None:
    """queries [n, heads, size], weights [n, heads] float32; keys [rows, 1, places, size]: float32, or uint16 holding bfloat16;
    seen: rows, positions, prefix and tail (see tree.Nodes); mask [n, blocks]: see `attention_cpu.attend`."""
    rows, positions, prefix, tail = seen
    count, heads, size = queries.shape
    width = mask.shape[1] * BLOCK
    scores = np.zeros((count, width), np.float32)
    bits = np.empty(size if keys.itemsize < 4 else 0, np.uint32)
    block, products = lines(size, BLOCK), lines(heads, BLOCK)
    for start in range(0, width, BLOCK):
        loaded = np.int64(-1)
        for i in range(count):
            last = min(positions[i], start + BLOCK - 1)
            if last < start or positions[i] < most:
                continue
            # A block within the straight prefix is the same for all nodes of a row.
            whole = start + BLOCK <= prefix[i]
            if not whole or loaded != rows[i]:
                gather(keys, rows[i], 0, prefix[i], tail[i], (start, start, last), True, bits, block)
                loaded = rows[i] if whole else np.int64(-1)
            combine_rows(block.ctypes.data, size, queries[i].ctypes.data, heads, size, products.ctypes.data, BLOCK)
            for h in range(heads):
                # of the whole block: where a loop begins may decide how its numbers are rounded
                for j in range(BLOCK):
                    scores[i, start + j] += weights[i, h] * max(products[h, j] * scale, np.float32(0))
    for i in range(count):
        if positions[i] < most:
            mask[i, :] = ALL_PLACES
        else:
            _best(scores[i, : positions[i] + 1], most, mask[i])


@contracted
def _best(scores: Any, most: int, words: Any) -> None:
    """Set the bits of the `most` positions of the highest `scores` in `words`, and no others."""
    count = len(scores)
    for j in range(count):
        # What is no number is below all that are.
        if not scores[j] > np.float32(-np.inf):
            scores[j] = np.float32(-np.inf)
    least, equal = np.partition(scores, count - most)[count - most], most
    for j in range(count):
        equal -= scores[j] > least
    words[:] = 0
    for j in range(count):
        taken = scores[j] > least
        if not taken and scores[j] == least and equal > 0:
            taken, equal = True, equal - 1
        if taken:
            words[j // BLOCK] |= np.uint64(1) << np.uint64(j % BLOCK)


def choose_anywhere(asked: IndexQuery, keys: Tensor, nodes: Nodes) -> Chosen:
    """The same by plain torch, on any device. Every product has one shape always, that of GROUP nodes and all slots of a row."""
    if keys.shape[2] <= asked.most:
        return ALL
    groups = [_group(asked[i : i + GROUP], keys, nodes[i : i + GROUP]) for i in range(0, len(nodes), GROUP)]
    return Chosen(nodes=nodes.seeing(torch.cat(groups)))


def _group(asked: IndexQuery, keys: Tensor, nodes: Nodes) -> Tensor:
    """Slots [n, most] of what each looks at, in the order of their positions, -1 after the last."""
    count, most = len(nodes), asked.most
    queries, weights = (
        nn.functional.pad(each.float(), (0, 0) * (each.dim() - 1) + (0, GROUP - count)) for each in (asked.queries, asked.weights)
    )
    places = torch.arange(keys.shape[2], device=keys.device)
    seen = places <= nodes.positions[:, None]
    slots = torch.where(seen, nodes.slots_at(places.expand(count, -1)), 0)
    own = nn.functional.pad(keys[nodes.rows[:, None], 0, slots].float(), (0, 0, 0, 0, 0, GROUP - count))
    products = (queries @ own.transpose(1, 2) * asked.scale).relu()
    scores = (weights[:, None] @ products)[:count, 0].nan_to_num(-torch.inf).masked_fill(~seen, -torch.inf)
    # Stable: of equal ones the earlier, and those that are not seen come last.
    order = torch.where(seen, scores, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :most]
    chosen = order.sort(dim=-1).values
    return torch.where(seen.gather(1, chosen), slots.gather(1, chosen), -1)
