"""Position-ordered attention on a GPU; see `kernels.attention_cpu` for what it means. Serves the target and the draft.

A program is one node and one head of keys: it goes through the node's own positions in blocks of 64 absolute positions
(fewer where keys are very long), in order, wherever their slots are, and keeps a running softmax in float32. It reads nothing
that depends on another node, so a node has the same bits in a tree, in a prompt or alone."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...tree import Nodes
from ..attention import AttentionSpec
from . import INTERPRETED

# positions at once
BLOCK = 64
# bytes of a key up to which BLOCK positions fit on the chip; of keys twice as long half as many are taken at once, and so on
LINE = 512
# positions that a product takes at least
LEAST = 16


def attend(query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    """query [n, heads, key size] -> [n, heads, value size]. keys, values: [rows, kv heads, places, size], slot s at place
    s % places, which hold the nodes' own too.

    `nodes` lies on the device. Only columns that a node sees are read, so the cost is that of the live length."""
    count, heads, dim = query.shape
    size, kv_heads, group = values.shape[3], keys.shape[1], heads // keys.shape[1]
    assert keys.is_contiguous() and values.is_contiguous() and keys.dtype == values.dtype
    query = query.contiguous()
    tail, width = (nodes.tail.contiguous(), nodes.tail.shape[1]) if nodes.tail.numel() else (nodes.positions, 0)
    narrow = query.dtype == keys.dtype == torch.bfloat16
    wide, wide_value = (max(16, triton.next_power_of_2(numbers)) for numbers in (dim, size))
    out = query.new_empty(count, heads, size)
    sinks = query if spec.sinks is None else spec.sinks.contiguous()
    _attend[(count, kv_heads)](
        query, keys, values, out, sinks, nodes.rows, nodes.positions, nodes.prefix, tail, width, kv_heads, keys.shape[2],
        spec.scaling, spec.softcap, spec.window, GROUP=group, M=max(16, triton.next_power_of_2(group)), DIM=dim, D=wide,
        SIZE=size, S=wide_value, BLOCK=_block(max(wide, wide_value) * keys.element_size()),
        WINDOWED=spec.window > 0, CAPPED=spec.softcap > 0, SINKS=spec.sinks is not None, NARROW=narrow,
        WIDE=INTERPRETED or not narrow, num_warps=4, num_stages=2 if narrow else 1, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _block(line: int) -> int:
    """Positions at once of keys and values of `line` bytes, a power of two."""
    return max(BLOCK * LINE // max(line, LINE), LEAST)


@triton.jit(do_not_specialize=["width", "kv_heads", "places", "window"])
def _attend(
    query, keys, values, out, sinks, rows, positions, prefixes, tail, width, kv_heads, places, scaling, softcap, window,
    GROUP: tl.constexpr, M: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr,
    BLOCK: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr, NARROW: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    node, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position, prefix = tl.load(positions + node), tl.load(prefixes + node)
    slab = (tl.load(rows + node) * kv_heads + head) * places
    g, c, d = tl.arange(0, M), tl.arange(0, D), tl.arange(0, S)
    mine = (node * kv_heads + head) * GROUP + g[:, None]
    q = tl.load(query + mine * DIM + c[None, :], (g[:, None] < GROUP) & (c[None, :] < DIM), other=0)
    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    if SINKS:
        top = tl.load(sinks + head * GROUP + g, g < GROUP, other=0).to(tl.float32)
        total += 1
    sums = tl.zeros([M, S], tl.float32)
    low = position * 0
    if WINDOWED:
        low = tl.maximum(position + 1 - window, 0)
    for start in range(low // BLOCK * BLOCK, position + 1, BLOCK):
        place = start + tl.arange(0, BLOCK)
        seen = (place >= low) & (place <= position)
        beyond = place >= prefix
        slot = tl.where(beyond, tl.load(tail + node * width + place - prefix, seen & beyond, other=0), place) % places
        line = slab + slot[:, None]
        k = tl.load(keys + line * DIM + c[None, :], seen[:, None] & (c[None, :] < DIM), other=0)
        v = tl.load(values + line * SIZE + d[None, :], seen[:, None] & (d[None, :] < SIZE), other=0)
        scores = _dot(q, tl.trans(k), WIDE) * scaling
        if CAPPED:
            scores = softcap * _tanh(scores / softcap)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        fade = tl.exp(top - highest)
        weights = tl.exp(scores - highest[:, None])
        total = total * fade + tl.sum(weights, 1)
        # two bfloat16s hold a weight to 16 bits, and the sum is kept in float32
        if NARROW:
            coarse = weights.to(tl.bfloat16)
            fine = (weights - coarse.to(tl.float32)).to(tl.bfloat16)
            sums = sums * fade[:, None] + _dot(coarse, v, WIDE) + _dot(fine, v, WIDE)
        else:
            sums = sums * fade[:, None] + _dot(weights, v, WIDE)
        top = highest
    held = (g[:, None] < GROUP) & (d[None, :] < SIZE)
    tl.store(out + mine * SIZE + d[None, :], (sums / total[:, None]).to(q.dtype), held)


@triton.jit
def _dot(a, b, WIDE: tl.constexpr):
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _tanh(x):
    small = tl.exp(-2 * tl.abs(x))
    size = (1 - small) / (1 + small)
    return tl.where(x < 0, -size, size)
