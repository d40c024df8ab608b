"""The draft view: the same modules with the substitute's weights alone. No slow memory is touched; scratch slots are written,
which the target overwrites. Bits do not matter here, so on a processor plain SDPA over the live length is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cache import Cache
from ..devices.accelerator import Accelerator
from ..kernels.attention import AttentionSpec
from ..tree import Nodes
from .level import DeviceLevel
from .streamed import CurrentPass, Pass, pass_cache


@dataclass
class Draft:
    """`linears[i]` multiplies by Linear number i's substitute; `embed` makes the embedding module ready for tokens."""

    model: nn.Module
    current: CurrentPass
    cache: Cache
    embed: Callable[[Tensor], Tensor]
    linears: Sequence[Callable[[Tensor], Tensor]]
    device: Accelerator | None = None

    def __call__(self, nodes: Nodes) -> Tensor:
        """Logits [n, vocab] after each of `nodes`, whose ancestors must have been run before (or be among them).

        Where `nodes` lie on the device already, the host is asked for nothing."""
        nodes = nodes if self.device is None else nodes.to(self.device.where)
        ids = self.embed(nodes.tokens)[None]
        self.current.under_way = self._pass(nodes)
        try:
            out = self.model(
                input_ids=ids, position_ids=nodes.positions[None], past_key_values=pass_cache(self.current), use_cache=True
            )
            logits: Tensor = out.logits[0]
            return logits
        finally:
            self.current.under_way = None

    def _pass(self, nodes: Nodes) -> Pass:
        if self.device is None:
            return _Level(self, nodes)
        return DeviceLevel(self.linears, self.cache, nodes, self.device)


class _Level:
    """One draft forward: all its nodes side by side, attention row by row."""

    def __init__(self, view: Draft, nodes: Nodes):
        self.view, self.nodes = view, nodes
        counts = torch.unique_consecutive(nodes.rows, return_counts=True)[1].tolist()
        self.spans, start = [], 0
        for count in counts:
            self.spans.append((start, start + count, int(nodes.rows[start])))
            start += count
        self.masks: dict[tuple[int, int], tuple[int, Tensor | None]] = {}

    def linear(self, index: int, x: Tensor) -> Tensor:
        return self.view.linears[index](x)

    def write_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        state, nodes = self.view.cache.layers[layer], self.nodes
        if len(nodes) == 1:
            row, slot = self.spans[0][2], int(nodes.slots[0])
            state.keys[row, :, slot] = keys[0]
            state.values[row, :, slot] = values[0]
        else:
            state.write(nodes, keys, values)

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        state = self.view.cache.layers[layer]
        keys, values = state.keys, state.values
        outs = []
        for start, end, row in self.spans:
            columns, mask = self._mask(start, end, spec.window, query.shape[1] // keys.shape[1])
            k, v = keys[row, :, :columns].to(query.dtype), values[row, :, :columns].to(query.dtype)
            outs.append(_grouped(query[start:end], k, v, mask, spec))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _mask(self, start: int, end: int, window: int, group: int) -> tuple[int, Tensor | None]:
        """How many columns of the slab this span sees, and which of them [group * n, columns] (None: all of them)."""
        if (start, window) not in self.masks:
            nodes = self.nodes[start:end]
            columns = int(nodes.slots.max()) + 1
            position = int(nodes.positions[0])
            plain = end - start == 1 and int(nodes.prefix[0]) == position + 1 == columns and not 0 < window <= position
            mask = None if plain else self._seen(nodes, columns, window).repeat(group, 1)
            self.masks[start, window] = (columns, mask)
        return self.masks[start, window]

    def _seen(self, nodes: Nodes, columns: int, window: int) -> Tensor:
        place = torch.arange(columns)[None]
        low = (
            (nodes.positions[:, None] + 1 - window).clamp(min=0)
            if window
            else torch.zeros(len(nodes), 1, dtype=torch.int64)
        )
        seen = (place < nodes.prefix[:, None]) & (place >= low) & (place <= nodes.positions[:, None])
        if nodes.tail.shape[1]:
            beyond = nodes.prefix[:, None] + torch.arange(nodes.tail.shape[1])[None]
            node, j = ((nodes.tail >= 0) & (beyond >= low)).nonzero(as_tuple=True)
            seen[node, nodes.tail[node, j]] = True
        return seen


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """q [n, heads, d] over k, v [kv heads, columns, d]: the query heads that share a kv head are rows of one product."""
    n, heads, dim = q.shape
    rows = q.transpose(0, 1).reshape(k.shape[0], -1, dim)
    if spec.softcap:
        scores = spec.softcap * torch.tanh(rows @ k.transpose(-1, -2) * spec.scaling / spec.softcap)
        out = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v
    else:
        out = nn.functional.scaled_dot_product_attention(rows[None], k[None], v[None], attn_mask=mask, scale=spec.scaling)[0]
    return out.reshape(heads, n, dim).transpose(0, 1)
