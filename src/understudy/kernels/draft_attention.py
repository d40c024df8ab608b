"""Attention of a draft level on a processor: plain SDPA over the live length. Its bits depend on what else is in the level,
which a draft may do and the target may not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..small_keys import plain
from ..tree import Nodes
from .attention import AttentionSpec


class LevelAttention:
    """Attention of `nodes`, row by row. What each row's nodes see is worked out once, at the first layer of its window."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        # first and last node of each row, and the row
        self.spans: list[tuple[int, int, int]] = []
        start = 0
        for count in torch.unique_consecutive(nodes.rows, return_counts=True)[1].tolist():
            self.spans.append((start, start + count, int(nodes.rows[start])))
            start += count
        # by first node, window, places of a row and query heads of a head of keys: columns, and which of them are seen
        self.masks: dict[tuple[int, int, int, int], tuple[int, Tensor | None]] = {}

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        """query [n, heads, key size] over keys, values [rows, kv heads, places, size] -> [n, heads, value size]; slot s lies at
        place s % places."""
        outs = []
        for start, end, row in self.spans:
            group = query.shape[1] // keys.shape[1]
            columns, mask = self._mask(start, end, spec.window, keys.shape[2], group)
            if spec.chosen.mask is not None:
                chosen = _chosen(self.nodes[start:end], spec.chosen.mask[:, start:end], columns).repeat(1, group, 1)
                mask = chosen if mask is None else mask & chosen
            k, v = (plain(slab[row, :, :columns]).to(query.dtype) for slab in (keys, values))
            near = None if spec.bias is None else _near(self.nodes[start:end], spec.bias[start:end], columns, spec.window)
            outs.append(_grouped(query[start:end], k, v, mask, near, spec))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _mask(self, start: int, end: int, window: int, places: int, group: int) -> tuple[int, Tensor | None]:
        """How many columns this span sees of a row's `places`, and which of them [group * n, columns] (None: all of them)."""
        key = start, window, places, group
        if key not in self.masks:
            nodes = self.nodes[start:end]
            last = int(nodes.slots.max())
            columns = min(last + 1, places)
            position = int(nodes.positions[0])
            plain = end - start == 1 and int(nodes.prefix[0]) == position + 1 == columns and not 0 < window <= position
            self.masks[key] = columns, None if plain else _seen(nodes, last, columns, window).repeat(group, 1)
        return self.masks[key]


def _seen(nodes: Nodes, last: int, columns: int, window: int) -> Tensor:
    """[n, columns] bool: the columns that each node sees, the highest slot being `last`."""
    # the latest slot that lies in each column
    slot = last - (last - torch.arange(columns)[None]) % columns
    low = torch.zeros(len(nodes), 1, dtype=torch.int64)
    if window:
        low = (nodes.positions[:, None] + 1 - window).clamp(min=0)
    seen = (slot < nodes.prefix[:, None]) & (slot >= low) & (slot <= nodes.positions[:, None])
    if nodes.tail.shape[1]:
        beyond = nodes.prefix[:, None] + torch.arange(nodes.tail.shape[1])[None]
        node, j = ((nodes.tail >= 0) & (beyond >= low)).nonzero(as_tuple=True)
        seen[node, nodes.tail[node, j] % columns] = True
    return seen


def _chosen(nodes: Nodes, words: Tensor, columns: int) -> Tensor:
    """[1 or kv heads, n, columns] bool: the columns that each node looks at, by the `words` of a mask (see `Chosen`)."""
    places = torch.arange(64 * words.shape[2])
    bits = (words[..., None] >> torch.arange(64) & 1).flatten(2).bool() & (places <= nodes.positions[:, None])
    head, node, place = bits.nonzero(as_tuple=True)
    found = torch.zeros(len(words), len(nodes), columns, dtype=torch.bool)
    found[head, node, nodes.slots_at(places.expand(len(nodes), -1))[node, place] % columns] = True
    return found


def _near(nodes: Nodes, bias: Tensor, columns: int, window: int) -> Tensor:
    """[heads, n, columns]: what is added to the score of each column for each node, by a `bias` [n, heads, extent] by distance."""
    extent = min(bias.shape[2], window or bias.shape[2])
    places = nodes.positions[:, None] - torch.arange(extent)
    there = nodes.slots_at(places.clamp(min=0)) % columns
    given = torch.where((places >= 0)[:, None], bias[..., :extent], 0)
    found = bias.new_zeros(*bias.shape[:2], columns)
    return found.scatter_add_(2, there[:, None].expand(given.shape), given).transpose(0, 1)


def _grouped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, near: Tensor | None, spec: AttentionSpec
) -> Tensor:  # fmt: skip
    """q [n, heads, key size] over k, v [kv heads, columns, size]: the query heads that share a kv head are rows of one product.
    near: see `_near`; None: nothing is added."""
    n, heads, dim = q.shape
    rows = q.transpose(0, 1).reshape(k.shape[0], -1, dim)
    if near is not None:
        near = near.to(q.dtype).reshape(*rows.shape[:2], -1)
    if spec.softcap or spec.sinks is not None:
        out = _weights(rows @ k.transpose(-1, -2) * spec.scaling, mask, near, spec) @ v
    else:
        if near is not None:
            mask = near if mask is None else near.masked_fill(~mask, -torch.inf)
        out = nn.functional.scaled_dot_product_attention(rows[None], k[None], v[None], attn_mask=mask, scale=spec.scaling)[0]
    return out.reshape(heads, n, v.shape[-1]).transpose(0, 1)


def _weights(scores: Tensor, mask: Tensor | None, near: Tensor | None, spec: AttentionSpec) -> Tensor:
    """The weights [kv heads, shared heads * n, columns] of scores in the same shape."""
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if near is not None:
        scores = scores + near
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if spec.sinks is None:
        return scores.softmax(-1)
    each = scores.shape[0] * scores.shape[1] // len(spec.sinks)
    sinks = spec.sinks.to(scores.dtype).repeat_interleave(each).view(*scores.shape[:2], 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
