"""Attention of the target over keys and values of which a file holds most: chunk by chunk in the order of positions, by the kernels
that attend in memory, so every bit is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..spilled import CHUNK, FIRST, SpilledState, chunks_of, nodes_together
from ..tree import Nodes
from . import attention_cpu
from .attention import NO_SINKS, AttentionSpec, bits_of_slab

BLOCK = attention_cpu.BLOCK


def attend(
    query: Tensor, state: SpilledState, nodes: Nodes, spec: AttentionSpec,
    *, pool: ThreadPoolExecutor | None = None, threads: int = 1,
) -> Tensor:  # fmt: skip
    """Attention as `attention.attend` gives it, to the bit: query [n, heads, key size] -> [n, heads, value size].

    Raises TransferError where the file cannot be read."""
    q = query.float().contiguous().numpy()
    out = np.empty((*q.shape[:2], state.values.shape[3]), np.float32)
    heads = state.group * query.shape[1] // state.keys.shape[1]
    for row in sorted(set(nodes.rows.tolist())):
        places = (nodes.rows == row).nonzero()[:, 0]
        most = nodes_together(heads, -(-(nodes.last + 1) // BLOCK) * BLOCK)
        for some in places.split(most):
            run = _RowAttention(state, row, spec, nodes.picked(some), q[some.numpy()], pool if threads > 1 else None, threads)
            out[some.numpy()] = run()
    return torch.from_numpy(out).to(query.dtype)


def compile_kernels(dtype: torch.dtype) -> None:
    """Run the kernels once over a cache of `dtype`, so that their machine code is there."""
    slab = bits_of_slab(torch.zeros(1, 1, BLOCK, 8, dtype=dtype))
    query, line = np.zeros((1, 1, 8), np.float32), np.zeros((1, 1, BLOCK), np.float32)
    bits, block = np.empty(8 if slab.itemsize == 2 else 0, np.uint32), np.zeros((8, BLOCK), np.float32)
    zero, part = np.zeros(1, np.int64), (0, 1, 0)
    seen = zero, zero, zero + 1, np.zeros((1, 0), np.int64)
    how = 0, np.float32(1), np.float32(0)
    attention_cpu.score(query, slab, 0, 0, seen, how, part, (bits, block, block.copy()), line)
    attention_cpu.settle(line, zero, 0, NO_SINKS, 0, query)
    attention_cpu.weigh(line, slab, 0, 0, seen, 0, part, (bits, block.T.copy(), block.T.copy()), query)


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

    def __call__(self) -> Any:
        """[n, heads, value size] float32"""
        state, count = self.state, len(self.nodes)
        group = self.query.shape[1] // state.keys.shape[1]
        out = np.empty((*self.query.shape[:2], state.values.shape[3]), np.float32)
        blocks = -(-(self.nodes.last + 1) // BLOCK)
        line = np.empty((state.group, count, group, blocks * BLOCK), np.float32)
        segments = self._segments()
        heads = range(0, state.keys.shape[1], state.group)
        chunks = [segment.origin for segment in segments if segment.streamed]
        stream = state.stream(self.row, [(second, head, chunk) for head in heads for second in (False, True) for chunk in chunks])
        for head in heads:
            for segment, slab in self._slabs(segments, stream, state.keys, head):
                self._share(self._scoring(segment, slab, head * group, line))
            self._share(self._settling(head * group, line, out))
            for segment, slab in self._slabs(segments, stream, state.values, head):
                self._share(self._weighing(segment, slab, head * group, line, out))
        return out

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

    def _slabs(self, segments: list[_Segment], stream: Iterator[Tensor], slab: Tensor, head: int) -> Iterator[tuple[_Segment, Any]]:
        """Each segment with keys or values [1, heads, places, size] of a group, in fast memory `slab` or as they come."""
        held = bits_of_slab(slab[self.row : self.row + 1, head : head + self.state.group])
        for segment in segments:
            yield segment, bits_of_slab(next(stream)) if segment.streamed else held

    def _seen(self, segment: _Segment, first: int, last: int) -> tuple[Any, ...]:
        """Rows, positions, prefix and tail of nodes `first` to `last`, counted from the origin of `segment`."""
        _, positions, prefix, tail = self.nodes.arrays
        shift = segment.origin
        rows = np.zeros(last - first, np.int64)
        return rows, positions[first:last] - shift, prefix[first:last] - shift, tail[first:last] - shift

    def _scoring(self, segment: _Segment, keys: Any, first_query: int, line: Any) -> Callable[[int, int, int], None]:
        group, dim = line.shape[2], keys.shape[3]
        how = self.spec.window, np.float32(self.spec.scaling), np.float32(self.spec.softcap)
        part = segment.first, segment.end, segment.origin

        def score(head: int, first: int, last: int) -> None:
            bits = np.empty(dim if keys.itemsize == 2 else 0, np.uint32)
            rooms = bits, np.zeros((dim, BLOCK), np.float32), np.zeros((dim, BLOCK), np.float32)
            seen, own = self._seen(segment, first, last), line[head, first:last]
            attention_cpu.score(self.query[first:last], keys, head, first_query + head * group, seen, how, part, rooms, own)

        return score

    def _settling(self, first_query: int, line: Any, out: Any) -> Callable[[int, int, int], None]:
        sinks = NO_SINKS if self.spec.sinks is None else self.spec.sinks.float().numpy()
        _, positions, _, _ = self.nodes.arrays

        def settle(head: int, first: int, last: int) -> None:
            query = first_query + head * line.shape[2]
            window = self.spec.window
            attention_cpu.settle(line[head, first:last], positions[first:last], window, sinks, query, out[first:last])

        return settle

    def _weighing(self, segment: _Segment, values: Any, first_query: int, line: Any, out: Any) -> Callable[[int, int, int], None]:
        group, size = line.shape[2], values.shape[3]
        part = segment.first, segment.end, segment.origin

        def weigh(head: int, first: int, last: int) -> None:
            bits = np.empty(size if values.itemsize == 2 else 0, np.uint32)
            rooms = bits, np.zeros((BLOCK, size), np.float32), np.zeros((BLOCK, size), np.float32)
            seen, own, query = self._seen(segment, first, last), line[head, first:last], first_query + head * group
            attention_cpu.weigh(own, values, head, query, seen, self.spec.window, part, rooms, out[first:last])

        return weigh

    def _share(self, work: Callable[[int, int, int], None]) -> None:
        """Do `work` of each head of a group for all nodes, shared out over threads, which changes no bit."""
        count, heads = len(self.nodes), self.state.group
        parts = min(max(self.threads // heads, 1), count) if self.pool is not None else 1
        edges = [count * i // parts for i in range(parts + 1)]
        tasks = [(head, edges[i], edges[i + 1]) for head in range(heads) for i in range(parts)]
        if self.pool is None or len(tasks) == 1:
            for task in tasks:
                work(*task)
        else:
            list(self.pool.map(work, *zip(*tasks, strict=True)))
