"""Exact attention over the cache: the CPU's, and one in plain torch for wherever there is no kernel."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..small_keys import LINES, plain, size_in
from ..tree import Nodes
from . import attention_cpu

NO_SINKS = np.empty(0, np.float32)
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
    # [heads], of any type: one more score for each head, of which no value comes; None: there is none
    sinks: Tensor | None = field(default=None, compare=False)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec,
    *, pool: ThreadPoolExecutor | None = None, threads: int = 1,
) -> Tensor:  # fmt: skip
    """Attention on a processor: query [n, heads, key size] -> [n, heads, value size] of the same dtype, the bits of a node's row
    independent of all other nodes.

    keys, values: a layer's [rows, kv heads, places, size], slot s at place s % places, which already hold the nodes' own. The
    heads are shared out over `threads` of `pool`, which changes no bit."""
    q = query.float().contiguous().numpy()
    out = np.empty((*q.shape[:2], size_in(values)), np.float32)
    sinks = NO_SINKS if spec.sinks is None else spec.sinks.float().numpy()
    k, v, heads = bits_of_slab(keys), bits_of_slab(values), keys.shape[1]
    rows, positions, prefix, tail = nodes.arrays

    def heads_of(first: int, last: int) -> None:
        options = spec.window, spec.scaling, spec.softcap, sinks
        attention_cpu.attend(q, k, v, rows, positions, prefix, tail, *options, first, last, out)

    work = q.size * (nodes.last + 1)
    if pool is None or threads < 2 or heads < 2 or work < WORTH_SHARING:
        heads_of(0, heads)
    else:
        edges = [heads * i // threads for i in range(threads + 1)]
        list(pool.map(heads_of, edges[:-1], edges[1:]))
    return torch.from_numpy(out).to(query.dtype)


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
    for start in range(0, int(nodes.positions.max()) + 1, attention_cpu.BLOCK):
        place = start + torch.arange(attention_cpu.BLOCK, device=q.device)[None]
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
