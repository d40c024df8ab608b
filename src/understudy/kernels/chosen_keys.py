"""The tokens that a layer looks at, where an index chooses them by what they hold: DeepSeek Sparse Attention (arXiv 2512.02556).

A token's score is a sum over the heads of the index: the weight of a head, times the product of the node's query and the token's
key where that is positive. The tokens of the highest scores are looked at, of equal ones the earlier. In MiniMax-M3 each head of
keys has a query of its own and looks at whole blocks of tokens: those that hold the highest products, the latest always among them.
A node's choice depends on no other node: every sum runs in one order, over blocks of 64 absolute positions or, where there is no
kernel, in one shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..tree import Nodes
from .attention import ALL, Chosen, bits_of_slab
from .attention_cpu import ALL_PLACES, KEYS, NOBODY
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
    # [n, heads]: what each head's products count, without `scale`; None: each head chooses for itself
    weights: Tensor | None
    # factor of every product
    scale: float
    # tokens that a node looks at, at most, or blocks of them
    most: int
    # tokens of a block, of which all are looked at or none; and how many of the latest blocks always are
    block: int = 1
    latest: int = 0

    def __getitem__(self, part: slice) -> IndexQuery:
        weights = None if self.weights is None else self.weights[part]
        return replace(self, queries=self.queries[part], weights=weights)


def choose(
    asked: IndexQuery, keys: Tensor, nodes: Nodes, *, pool: ThreadPoolExecutor | None = None, threads: int = 1
) -> Chosen:
    """What each of `nodes` looks at, on a processor; they are shared out over `threads` of `pool`.

    keys: a layer's index [rows, 1, slots, size], which already holds the nodes' own."""
    if nodes.last < asked.most * asked.block:
        return ALL
    q, slab = asked.queries.float().contiguous().numpy(), bits_of_slab(keys)
    weights = None if asked.weights is None else asked.weights.float().contiguous().numpy()
    # by node first, so that a share of nodes lies in one piece
    mask = np.empty((len(q), q.shape[1] if weights is None else 1, nodes.last // BLOCK + 1), np.uint64)

    def share_of(first: int, end: int) -> None:
        rows, positions, prefix, tail = (array[first:end] for array in nodes.arrays)
        seen = rows, positions, prefix, tail
        if weights is None:
            _choose_blocks(q[first:end], (asked.most, asked.block, asked.latest), slab, seen, mask[first:end])
        else:
            _choose(q[first:end], weights[first:end], np.float32(asked.scale), asked.most, slab, seen, mask[first:end])

    if pool is None or threads < 2 or q.size * (nodes.last + 1) < WORTH_SHARING:
        share_of(0, len(q))
    else:
        edges = [len(q) * i // threads for i in range(threads + 1)]
        list(pool.map(share_of, *zip(*pairwise(edges), strict=True)))
    return Chosen(mask=torch.from_numpy(mask.view(np.int64)).transpose(0, 1))


@contracted
def _choose(queries: Any, weights: Any, scale: Any, most: int, keys: Any, seen: Any, mask: Any) -> None:
    """queries [n, heads, size], weights [n, heads] float32; keys [rows, 1, places, size]: float32, or uint16 holding bfloat16;
    seen: rows, positions, prefix and tail (see tree.Nodes); mask [n, 1, blocks]: see `Chosen`."""
    positions = seen[1]
    count, heads, _ = queries.shape
    scores, products = np.zeros((count, mask.shape[2] * BLOCK), np.float32), lines(heads, BLOCK)
    scratch = _scratch(queries, keys)
    for start in range(0, scores.shape[1], BLOCK):
        loaded = NOBODY
        for i in range(count):
            if positions[i] < start or positions[i] < most:
                continue
            loaded = _multiply(queries[i], keys, seen, i, start, loaded, scratch, products)
            for h in range(heads):
                # of the whole block: where a loop begins may decide how its numbers are rounded
                for j in range(BLOCK):
                    scores[i, start + j] += weights[i, h] * max(products[h, j] * scale, np.float32(0))
    for i in range(count):
        if positions[i] < most:
            mask[i, 0] = ALL_PLACES
        else:
            _best(scores[i, : positions[i] + 1], most, mask[i, 0])


@contracted
def _choose_blocks(queries: Any, how: Any, keys: Any, seen: Any, mask: Any) -> None:
    """The same where each head chooses how[0] blocks of how[1] tokens, the latest how[2] among them; mask [n, heads, blocks]."""
    most, block, latest = how
    positions = seen[1]
    count, heads, _ = queries.shape
    width = mask.shape[2] * BLOCK
    scores = np.full((count, heads, (width + block - 1) // block), np.float32(-np.inf))
    products, words = lines(heads, BLOCK), np.empty(scores.shape[2] // BLOCK + 1, np.uint64)
    scratch = _scratch(queries, keys)
    for start in range(0, width, BLOCK):
        loaded = NOBODY
        for i in range(count):
            if positions[i] < start or positions[i] < most * block:
                continue
            loaded = _multiply(queries[i], keys, seen, i, start, loaded, scratch, products)
            for h in range(heads):
                for j in range(min(positions[i] + 1 - start, BLOCK)):
                    own = (start + j) // block
                    scores[i, h, own] = max(scores[i, h, own], products[h, j])
    for i in range(count):
        for h in range(heads):
            if positions[i] < most * block:
                mask[i, h] = ALL_PLACES
                continue
            blocks = positions[i] // block + 1
            scores[i, h, max(blocks - latest, 0) : blocks] = np.float32(np.inf)
            _best(scores[i, h, :blocks], most, words)
            mask[i, h] = 0
            for place in range(positions[i] + 1):
                own = place // block
                bit = (words[own // BLOCK] >> np.uint64(own % BLOCK)) & np.uint64(1)
                mask[i, h, place // BLOCK] |= bit << np.uint64(place % BLOCK)


@contracted
def _scratch(queries: Any, keys: Any) -> Any:
    """What `_multiply` works in: a line, and a block of keys."""
    size = queries.shape[2]
    return np.empty(size if keys.itemsize < 4 else 0, np.uint32), lines(size, BLOCK)


@contracted
def _multiply(query: Any, keys: Any, seen: Any, i: int, start: int, loaded: Any, scratch: Any, products: Any) -> Any:
    """The `products` [heads, 64] of node `i`'s `query` [heads, size] with the 64 keys from position `start` on. Returns the row
    whose block the scratch holds now, if it is one within the straight prefix, the same for all nodes; `loaded`: before."""
    rows, positions, prefix, tail = seen
    bits, block = scratch
    whole = start + BLOCK <= prefix[i]
    if not whole or loaded != rows[i]:
        span = start, start, min(positions[i], start + BLOCK - 1)
        gather(keys, rows[i], 0, prefix[i], tail[i], span, KEYS, bits, block)
        loaded = rows[i] if whole else NOBODY
    combine_rows(block.ctypes.data, len(block), query.ctypes.data, len(query), len(block), products.ctypes.data, BLOCK)
    return loaded


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
    """The same by plain torch, on any device, where not each head chooses for itself. Every product has one shape always, that of
    GROUP nodes and all slots of a row."""
    if keys.shape[2] <= asked.most:
        return ALL
    groups = [_group(asked[i : i + GROUP], keys, nodes[i : i + GROUP]) for i in range(0, len(nodes), GROUP)]
    return Chosen(nodes=nodes.seeing(torch.cat(groups)))


def _group(asked: IndexQuery, keys: Tensor, nodes: Nodes) -> Tensor:
    """Slots [n, most] of what each looks at, in the order of their positions, -1 after the last."""
    count, most = len(nodes), asked.most
    assert asked.weights is not None, "heads choose for themselves on a processor alone"
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
