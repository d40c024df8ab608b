"""Exact attention over the cache: the CPU's, and one in plain torch for wherever there is no kernel."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..tree import Nodes
from . import attention_cpu

# nodes that `attend_anywhere` runs together
GROUP = 32
# products of a query and a key; below about a millisecond, sharing the heads out costs more than it saves
WORTH_SHARING = 4_000_000


@dataclass(frozen=True)
class AttentionSpec:
    """How one layer attends, beside its queries, keys and values."""

    # factor of every score
    scaling: float
    # tokens a node looks back at, its own included; 0: all of them
    window: int = 0
    # scores are capped to softcap * tanh(score / softcap); 0: they are not
    softcap: float = 0.0


def attend(
    query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec,
    *, pool: ThreadPoolExecutor | None = None, threads: int = 1,
) -> Tensor:  # fmt: skip
    """Attention on a processor: query [n, heads, d] -> [n, heads, d] of the same dtype, the bits of a node's row independent of
    all other nodes.

    keys, values: a layer's [rows, kv heads, places, d], slot s at place s % places, which already hold the nodes' own. The
    heads are shared out over `threads` of `pool`, which changes no bit."""
    q = query.float().contiguous().numpy()
    out = np.empty_like(q)
    k, v, heads = _bits(keys), _bits(values), keys.shape[1]
    rows, positions, prefix, tail = (t.numpy() for t in (nodes.rows, nodes.positions, nodes.prefix, nodes.tail))

    def heads_of(first: int, last: int) -> None:
        options = spec.window, spec.scaling, spec.softcap
        attention_cpu.attend(q, k, v, rows, positions, prefix, tail, *options, first, last, out)

    work = q.size * int(nodes.positions.max() + 1)
    if pool is None or threads < 2 or heads < 2 or work < WORTH_SHARING:
        heads_of(0, heads)
    else:
        edges = [heads * i // threads for i in range(threads + 1)]
        list(pool.map(heads_of, edges[:-1], edges[1:]))
    return torch.from_numpy(out).to(query.dtype)


def _bits(slab: Tensor) -> np.ndarray:
    if slab.dtype == torch.bfloat16:
        return slab.view(torch.uint16).numpy()
    assert slab.dtype == torch.float32, f"the CPU kernel reads float32 and bfloat16 caches, not {slab.dtype}"
    return slab.numpy()


def attend_anywhere(query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    """Attention by plain torch, on any device; query, keys and values as for `attend`. `nodes` may lie there or on the CPU.

    Nodes go in groups of GROUP (the last is padded), through blocks of 64 absolute positions with a running softmax, so
    every product has the same shape always and a node's bits do not depend on how many others there are."""
    nodes = nodes.to(query.device)
    groups = [
        _attend_group(query[i : i + GROUP], keys, values, nodes[i : i + GROUP], spec)
        for i in range(0, len(nodes), GROUP)
    ]
    return torch.cat(groups)


def _attend_group(query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    (count, heads, dim), kv_heads = query.shape, keys.shape[1]
    q, rows, position, prefix, tail = (
        nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, GROUP - count))
        for tensor in (query.float(), nodes.rows[:, None], nodes.positions[:, None], nodes.prefix[:, None], nodes.tail)
    )
    q = q.view(GROUP, kv_heads, heads // kv_heads, dim)
    tail = nn.functional.pad(tail, (0, 1))
    top = q.new_full((*q.shape[:3], 1), -torch.inf)
    total, sums = torch.zeros_like(top), torch.zeros_like(q)
    for start in range(0, int(nodes.positions.max()) + 1, attention_cpu.BLOCK):
        place = start + torch.arange(attention_cpu.BLOCK, device=q.device)[None]
        seen = place <= position
        if spec.window:
            seen &= place > position - spec.window
        beyond = tail.gather(1, (place - prefix).clamp(0, tail.shape[1] - 1))
        slots = torch.where(place < prefix, place, beyond) % keys.shape[2]
        k, v = (
            slab.transpose(1, 2)[rows, slots].float().transpose(1, 2) for slab in (keys, values)
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
    return (sums / total).view(GROUP, heads, dim)[:count].to(query.dtype)
