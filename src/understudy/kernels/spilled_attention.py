"""Attention of the target over keys and values of which a file holds most: chunk by chunk in the order of positions, by the kernels
that attend in memory, so every bit is the same."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spilled import CHUNK, FIRST, SpilledState, chunks_of
from ..tree import Nodes
from . import attention_cpu
from .attention import NO_BIAS, NO_SINKS, AttentionSpec, Kernels, bits_of_slab, kernels_for
from .weighted import BLOCK


def attend(
    query: Tensor, state: SpilledState, nodes: Nodes, spec: AttentionSpec,
    *, pool: ThreadPoolExecutor | None = None, threads: int = 1,
) -> Tensor:  # fmt: skip
    """Attention as `attention.attend` gives it, to the bit: query [n, heads, key size] -> [n, heads, value size].

    Raises TransferError where the file cannot be read."""
    kernels = kernels_for(query, state.keys, state.values)
    q = query.float().contiguous().numpy()
    out = np.empty((*q.shape[:2], state.values.shape[3]), np.float32)
    for row in sorted(set(nodes.rows.tolist())):
        places = (nodes.rows == row).nonzero()[:, 0]
        own = places.numpy()
        run = _RowAttention(state, row, spec, nodes.picked(places), q[own], pool if threads > 1 else None, threads, kernels)
        out[own] = run()
    return torch.from_numpy(out).to(query.dtype)


def compile_kernels(dtype: torch.dtype, latent: bool = False) -> None:
    """Run the kernels once over a cache of `dtype`, so that their machine code is there. `latent`: values are a part of keys."""
    keys = torch.zeros(2, 1, BLOCK, 8, dtype=dtype)
    kernels, query = kernels_for(keys[0, :, :1], keys, keys), np.zeros((1, 1, 8), np.float32)
    zero = np.zeros(1, np.int64)
    nodes = zero, zero, zero + 1, np.zeros((1, 0), np.int64)
    # what lies in memory is part of more than it; keys that come from the file are not
    for slab in (bits_of_slab(keys)[:, :, :-1], bits_of_slab(keys)):
        values = slab[..., :4] if latent else slab
        share = _Share(kernels, (0, 0), (0, 1), query, slab, values, AttentionSpec(1.0))
        share.add(nodes, _Segment(0, 0, 1, streamed=False), slab, values)
        share.finish(query)


@dataclass(frozen=True)
class _Segment:
    """Blocks of positions that lie side by side in one array."""

    # Of the first place of the array.
    origin: int
    # Blocks of the array: from the first up to the second.
    first: int
    end: int
    # Does it come from the file?
    streamed: bool


class _Share:
    """What one thread does of a head of keys: the nodes nodes[0] up to nodes[1], from the first segment to the last."""

    def __init__(
        self, kernels: Kernels, heads: tuple[int, int], nodes: tuple[int, int], query: Any, keys: Any, values: Any,
        spec: AttentionSpec,
    ) -> None:  # fmt: skip
        """heads: of a group of keys, and the first query head that shares it; query: [n, heads, key size] of all nodes, and the
        query heads of a head of keys are as many as share it; keys, values: any of the layer."""
        self.kernels, self.heads, self.nodes = kernels, heads, nodes
        dim, size = query.shape[2], values.shape[3]
        sinks = NO_SINKS if spec.sinks is None else spec.sinks.float().numpy()
        self.how = spec.window, np.float32(spec.scaling), np.float32(spec.softcap), NO_BIAS
        self.query = query[slice(*nodes)]
        group = self.query.shape[1]
        self.state = attention_cpu.state_of(nodes[1] - nodes[0], group, -(-size // kernels.step) * kernels.step, sinks, heads[1])
        self.scratch = kernels.scratch_of(keys, values, dim, size, kernels.tables)

    def add(self, arrays: Sequence[Any], segment: _Segment, keys: Any, values: Any) -> None:
        """arrays: rows, positions, prefix and tail of all nodes."""
        rows, positions, prefix, tail = (array[slice(*self.nodes)] for array in arrays)
        shift = segment.origin
        # None of what spills is hidden from a node.
        seen = np.zeros_like(rows), positions - shift, prefix - shift, tail - shift, np.empty((len(rows), 0), np.uint64)
        part = segment.first, segment.end
        self.kernels.add(self.query, keys, values, (self.heads[0], 0), seen, self.how, part, self.scratch, self.state)

    def finish(self, out: Any) -> None:
        attention_cpu.finish(self.state, self.heads[1], out[slice(*self.nodes)])


@dataclass(frozen=True)
class _RowAttention:
    """Some nodes of one row, which attend together."""

    state: SpilledState
    row: int
    spec: AttentionSpec
    nodes: Nodes
    # [n, heads, key size] float32
    query: Any
    pool: ThreadPoolExecutor | None
    threads: int
    kernels: Kernels

    def __call__(self) -> Any:
        """[n, heads, value size] float32"""
        state = self.state
        out = np.empty((*self.query.shape[:2], state.values.shape[3]), np.float32)
        segments = self._segments()
        heads = range(0, state.keys.shape[1], state.group)
        chunks = [segment.origin for segment in segments if segment.streamed]
        stream = state.stream(self.row, [(head, chunk) for head in heads for chunk in chunks])
        for head in heads:
            here = slice(self.row, self.row + 1), slice(head, head + state.group)
            held = bits_of_slab(state.keys[here]), bits_of_slab(state.values[here])
            shares = self._shares(head, *held)
            for segment in segments:
                keys, values = map(bits_of_slab, next(stream)) if segment.streamed else held
                self._run(shares, segment, keys, values)
            for share in shares:
                share.finish(out)
        return out

    def _shares(self, head: int, keys: Any, values: Any) -> list[_Share]:
        """Those of a group of heads from `head` on: one for each thread, or for each head."""
        count, heads = len(self.nodes), self.state.group
        group = self.query.shape[1] // self.state.keys.shape[1]
        parts = min(max(self.threads // heads, 1), count) if self.pool is not None else 1
        edges = [count * i // parts for i in range(parts + 1)]
        found = []
        for number in range(heads):
            first = (head + number) * group
            own = np.ascontiguousarray(self.query[:, first : first + group])
            pieces = pairwise(edges)
            found += [_Share(self.kernels, (number, first), piece, own, keys, values, self.spec) for piece in pieces]
        return found

    def _run(self, shares: list[_Share], segment: _Segment, keys: Any, values: Any) -> None:
        arrays = self.nodes.arrays
        if self.pool is None or len(shares) == 1:
            for share in shares:
                share.add(arrays, segment, keys, values)
        else:
            list(self.pool.map(lambda share: share.add(arrays, segment, keys, values), shares))

    def _segments(self) -> list[_Segment]:
        """What the nodes may see, in the order of positions."""
        end, base = self.nodes.last + 1, self.state.bases[self.row]
        if not base:
            return [_Segment(0, 0, -(-end // BLOCK), streamed=False)]
        window = self.spec.window
        low = max(int(self.nodes.positions.min()) + 1 - window, 0) if window else 0
        spilled = min(end, base + FIRST)
        found = [_Segment(0, 0, FIRST // BLOCK, streamed=False)]
        for chunk in chunks_of(max(low, FIRST), spilled):
            found.append(_Segment(chunk, 0, -(-(min(spilled, chunk + CHUNK) - chunk) // BLOCK), streamed=True))
        return [*found, _Segment(base, FIRST // BLOCK, -(-(end - base) // BLOCK), streamed=False)]
