"""Exact attention over the cache: the CPU's, and one in plain torch for wherever there is no kernel."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..small_keys import LINES, plain, size_in
from ..tree import Nodes
from . import attention_amx, attention_cpu
from .amx_dot import has_amx
from .weighted import BLOCK

NO_SINKS = np.empty(0, np.float32)
NO_BIAS = np.empty((0, 0, 0), np.float32)
# nodes that `attend_anywhere` runs together
GROUP = 32
# products of a query and a key; below about a millisecond, sharing the heads out costs more than it saves
WORTH_SHARING = 4_000_000


@dataclass(frozen=True)
class Chosen:
    """What the nodes of a pass look at, chosen by an index: stock code hands it from the index to attention, and may keep it for
    the layers after that. Nothing is given where each looks at all that it sees."""

    # On a processor: [1 or kv heads, n, blocks] int64, bit j of word b is set where a node looks at position 64 * b + j, if it sees
    # that at all.
    mask: Tensor | None = None
    # Elsewhere: the nodes as attention sees them that looks at what was chosen alone.
    nodes: Nodes | None = None


ALL = Chosen()


@dataclass(frozen=True)
class AttentionSpec:
    """How one layer attends, beside its queries, keys and values."""

    # factor of every score
    scaling: float
    # tokens a node looks back at, its own included; 0: all of them
    window: int = 0
    # scores are capped to softcap * tanh(score / softcap); 0: they are not
    softcap: float = 0.0
    # [heads], of any type: one more score for each head, of which no value comes; None: there is none
    sinks: Tensor | None = field(default=None, compare=False)
    # what an index has chosen for the nodes to look at
    chosen: Chosen = field(default=ALL, compare=False)
    # [n or more, heads, extent], of any type, on a processor: what is added to the score of a position by how far it lies before
    # the node, as long as that is less than `extent`; None: nothing is
    bias: Tensor | None = field(default=None, compare=False)

    def __getitem__(self, part: slice) -> AttentionSpec:
        """Itself, for a part of the nodes, of which none is told what to look at."""
        return self if self.bias is None else replace(self, bias=self.bias[part])


def attend(
    query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec,
    *, pool: ThreadPoolExecutor | None = None, threads: int = 1,
) -> Tensor:  # fmt: skip
    """Attention on a processor: query [n, heads, key size] -> [n, heads, value size] of the same dtype, the bits of a node's row
    independent of all other nodes.

    keys, values: a layer's [rows, kv heads, places, size], slot s at place s % places, which already hold the nodes' own. The
    heads (of queries, where all share one of keys), and nodes where that makes shares equal, are shared out over `threads` of
    `pool`, which changes no bit."""
    kernels = kernels_for(query, keys, values)
    q = query.float().contiguous().numpy()
    out = np.empty((*q.shape[:2], size_in(values)), np.float32)
    sinks = NO_SINKS if spec.sinks is None else spec.sinks.float().numpy()
    k, heads = bits_of_slab(keys), keys.shape[1]
    # Vectors read as many numbers as there is room for; of values that are the first numbers of keys they need no array.
    v = k if kernels.step == 1 and values.data_ptr() == keys.data_ptr() else bits_of_slab(values)
    mask = np.empty((1, len(q), 0), np.uint64) if spec.chosen.mask is None else spec.chosen.mask.numpy().view(np.uint64)
    bias = NO_BIAS if spec.bias is None else spec.bias[: len(q)].float().contiguous().numpy()
    options = spec.window, spec.scaling, spec.softcap

    def share_of(task: tuple[int, int, int, int]) -> None:
        first, last, start, end = task
        seen = (*(array[start:end] for array in nodes.arrays), np.ascontiguousarray(mask[:, start:end]))
        if heads > 1:
            kernels.attend(q[start:end], k, v, *seen, bias[start:end], *options, sinks, first, last, out[start:end], kernels.tables)
            return
        asked, own = np.ascontiguousarray(q[start:end, first:last]), np.empty((end - start, last - first, out.shape[2]), np.float32)
        near = np.ascontiguousarray(bias[start:end, first:last])
        kernels.attend(asked, k, v, *seen, near, *options, sinks[first:last], 0, 1, own, kernels.tables)
        out[start:end, first:last] = own

    work, shared = q.size * (nodes.last + 1), heads if heads > 1 else q.shape[1]
    if pool is None or threads < 2 or work < WORTH_SHARING:
        share_of((0, shared, 0, len(q)))
    else:
        list(pool.map(share_of, shares(shared, len(q), threads)))
    return torch.from_numpy(out).to(query.dtype)


@dataclass(frozen=True)
class Kernels:
    """What attends on a processor: `attend` at once; `add` some of what nodes see to their state, in a scratch."""

    attend: Any
    add: Any
    scratch_of: Any
    # Sums of values have a multiple of so many numbers.
    step: int
    # What `attend` and `scratch_of` are given last.
    tables: Any


def kernels_for(query: Tensor, keys: Tensor, values: Tensor) -> Kernels:
    """Those for queries [n, heads, key size], keys and values of such types: of tiles where all are bfloat16 and the processor
    multiplies them, else of vectors. A node has other bits by one than by the other."""
    halves = all(tensor.dtype == torch.bfloat16 for tensor in (query, keys, values))
    dim = query.shape[2]
    if halves and dim % 2 == 0 and has_amx():
        own = attention_amx
        return Kernels(own.attend, own.add, own.scratch_of, BLOCK, _registers(dim))
    return Kernels(attention_cpu.attend, attention_cpu.add, attention_cpu.scratch_of, 1, attention_cpu.NOBODY)


@cache
def _registers(dim: int) -> Any:
    return attention_amx.registers(dim)


def shares(heads: int, nodes: int, threads: int) -> list[tuple[int, int, int, int]]:
    """What each of `threads` does: the first head and the end of the heads, the first node and the end of the nodes.

    Shares are equal as far as nodes can be cut, and pieces of nodes few: each gathers the blocks of its heads anew."""
    pieces = min(threads // math.gcd(heads, threads), -(-nodes // attention_cpu.TOGETHER))
    together = max(heads * pieces // threads, 1)
    edges = [nodes * i // pieces for i in range(pieces + 1)]
    starts = range(0, heads, together)
    return [(head, min(head + together, heads), *edge) for edge in pairwise(edges) for head in starts]


def bits_of_slab(slab: Tensor) -> np.ndarray:
    """Keys or values as the CPU's kernel reads them: float32, uint16 holding bfloat16, or lines of bytes."""
    if slab.dtype == torch.bfloat16:
        return slab.view(torch.uint16).numpy()
    assert slab.dtype in (torch.float32, LINES), f"the CPU kernel reads float32 and bfloat16 caches, not {slab.dtype}"
    return slab.numpy()


def attend_anywhere(query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    """Attention by plain torch, on any device, of the shapes of `attend`. `nodes` may lie there or on the CPU.

    Nodes go in groups of GROUP (the last is padded), through blocks of 64 absolute positions with a running softmax, so
    every product has the same shape always and a node's bits do not depend on how many others there are."""
    assert spec.bias is None, "biases by distance are added on a processor alone"
    nodes = nodes.to(query.device)
    groups = [
        _attend_group(query[i : i + GROUP], keys, values, nodes[i : i + GROUP], spec)
        for i in range(0, len(nodes), GROUP)
    ]
    return torch.cat(groups)


def _attend_group(query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    (count, heads, dim), kv_heads, size = query.shape, keys.shape[1], size_in(values)
    q, rows, position, prefix, tail = (
        nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, GROUP - count))
        for tensor in (query.float(), nodes.rows[:, None], nodes.positions[:, None], nodes.prefix[:, None], nodes.tail)
    )
    q = q.view(GROUP, kv_heads, heads // kv_heads, dim)
    tail = nn.functional.pad(tail, (0, 1))
    top, total = _beginning(q, spec.sinks)
    sums = q.new_zeros((*q.shape[:3], size))
    for start in range(0, int(nodes.positions.max()) + 1, BLOCK):
        place = start + torch.arange(BLOCK, device=q.device)[None]
        seen = place <= position
        if spec.window:
            seen &= place > position - spec.window
        beyond = tail.gather(1, (place - prefix).clamp(0, tail.shape[1] - 1))
        slots = torch.where(place < prefix, place, beyond) % keys.shape[2]
        k, v = (
            plain(slab.transpose(1, 2)[rows, slots]).float().transpose(1, 2) for slab in (keys, values)
        )  # [GROUP, kv, 64, d]
        scores = q @ k.transpose(-1, -2) * spec.scaling
        if spec.softcap:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
        highest = torch.maximum(top, scores.amax(-1, keepdim=True))
        fade = torch.where(highest == top, 1.0, (top - highest).exp())
        weights = torch.where(seen[:, None, None], (scores - highest).exp(), 0.0)
        active = seen.any(1)[:, None, None, None]
        total = torch.where(active, total * fade + weights.sum(-1, keepdim=True), total)
        v = torch.where(seen[:, None, :, None], v, 0.0)
        sums = torch.where(active, sums * fade + weights @ v, sums)
        top = highest
    return (sums / total).view(GROUP, heads, size)[:count].to(query.dtype)


def _beginning(q: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """The highest score and the sum of weights [GROUP, kv heads, shared heads, 1] before any key was seen: those of the sinks."""
    shape = (*q.shape[:3], 1)
    if sinks is None:
        return q.new_full(shape, -torch.inf), q.new_zeros(shape)
    return sinks.float().view(1, *shape[1:]).expand(shape), q.new_ones(shape)
