"""Exact attention over the cache, on whatever device it lies."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..cache import Cache
from ..tree import Nodes
from . import attention_cpu

WORTH_SHARING = (
    4_000_000  # products of a query and a key; below about a millisecond, handing out costs more than it saves
)


def attend(
    query: Tensor,
    cache: Cache,
    layer: int,
    nodes: Nodes,
    *,
    scaling: float,
    window: int = 0,
    softcap: float = 0.0,
    pool: ThreadPoolExecutor | None = None,
    threads: int = 1,
) -> Tensor:
    """query [n, heads, d] -> [n, heads, d] of the same dtype, the bits of a node's row independent of all other nodes.

    Keys and values are those of `cache` at `layer`, which already holds the nodes' own. The heads are shared out over
    `threads` of `pool`, which changes no bit."""
    keys, values = cache.keys[layer], cache.values[layer]
    if query.device.type != "cpu":
        return attend_gathered(query, keys, values, nodes, scaling=scaling, window=window, softcap=softcap)
    q = query.float().contiguous().numpy()
    out = np.empty_like(q)
    k, v, heads = _bits(keys), _bits(values), keys.shape[1]
    rows, positions, prefix, tail = (t.numpy() for t in (nodes.rows, nodes.positions, nodes.prefix, nodes.tail))

    def some(first: int, last: int) -> None:
        attention_cpu.attend(q, k, v, rows, positions, prefix, tail, window, scaling, softcap, first, last, out)

    work = q.size * int(nodes.positions.max() + 1)
    if pool is None or threads < 2 or heads < 2 or work < WORTH_SHARING:
        some(0, heads)
    else:
        edges = [heads * i // threads for i in range(threads + 1)]
        list(pool.map(some, edges[:-1], edges[1:]))
    return torch.from_numpy(out).to(query.dtype)


def _bits(slab: Tensor) -> np.ndarray:
    if slab.dtype == torch.bfloat16:
        return slab.view(torch.uint16).numpy()
    assert slab.dtype == torch.float32, f"the CPU kernel reads float32 and bfloat16 caches, not {slab.dtype}"
    return slab.numpy()


def attend_gathered(
    query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, *, scaling: float, window: int = 0, softcap: float = 0.0
) -> Tensor:
    """The same by plain torch on any device: each node's columns are gathered in position order, then summed in that order.

    Columns are padded to a multiple of 64 and masked; every node is its own product, so it does not see its siblings."""
    device, (n, heads, dim) = query.device, query.shape
    group = heads // keys.shape[1]
    columns = -(-int(nodes.positions.max() + 1) // attention_cpu.BLOCK) * attention_cpu.BLOCK
    place = torch.arange(columns)
    tail = torch.nn.functional.pad(nodes.tail, (0, 1), value=-1)
    beyond = (place[None] - nodes.prefix[:, None]).clamp(0, tail.shape[1] - 1)
    slots = torch.where(place[None] < nodes.prefix[:, None], place[None], tail.gather(1, beyond)).clamp(min=0)
    seen = place[None] <= nodes.positions[:, None]
    if window:
        seen &= place[None] > nodes.positions[:, None] - window
    rows, slots, seen = nodes.rows[:, None].to(device), slots.to(device), seen.to(device)
    k = keys.transpose(1, 2)[rows, slots].float().permute(0, 2, 3, 1)  # [n, kv, d, columns]
    v = values.transpose(1, 2)[rows, slots].float().permute(0, 2, 1, 3)
    scores = query.float().view(n, -1, group, dim) @ k * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return (weights @ v).view(n, heads, dim).to(query.dtype)
