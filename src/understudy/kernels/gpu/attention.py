"""Position-ordered attention on a GPU; see `kernels.attention_cpu` for what it means. Serves the target and the draft.

A program is one node and one head of keys: it goes through the node's own positions in blocks of 64 absolute positions
(fewer where keys are very long), in order, wherever their slots are, and keeps a running softmax in float32. It reads nothing
that depends on another node, so a node has the same bits in a tree, in a prompt or alone.

Latent states are keys of which the first numbers are the values (`LayerShape.latent`): a block of them is read once. As all
queries have one head of keys then, a program takes some of the queries."""

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
# positions that a product takes at least, and queries over latent states that go through them together
LEAST = 16


def attend(query: Tensor, keys: Tensor, values: Tensor, nodes: Nodes, spec: AttentionSpec) -> Tensor:
    """query [n, heads, key size] -> [n, heads, value size]. keys, values: [rows, kv heads, places, size], slot s at place
    s % places, which hold the nodes' own too.

    `nodes` lies on the device. Values may be the first numbers of keys. Only columns that a node sees are read, so the cost is
    that of the live length."""
    count, heads, _ = query.shape
    kv_heads, group = keys.shape[1], heads // keys.shape[1]
    sizes = key_sizes(keys, values)
    assert keys.dtype == values.dtype
    query = query.contiguous()
    tail, width = beyond(nodes)
    narrow = query.dtype == keys.dtype == torch.bfloat16
    together = LEAST if sizes["INSIDE"] else max(LEAST, triton.next_power_of_2(group))
    tiles = triton.cdiv(group, together)
    out = query.new_empty(count, heads, sizes["SIZE"])
    sinks = query if spec.sinks is None else spec.sinks.contiguous()
    _attend[(count, kv_heads * tiles)](
        query, keys, values, out, sinks, nodes.rows, nodes.positions, nodes.prefix, tail, width, kv_heads, keys.shape[2],
        spec.scaling, spec.softcap, spec.window, GROUP=group, M=together, TILES=tiles, **sizes,
        WINDOWED=spec.window > 0, CAPPED=spec.softcap > 0, SINKS=spec.sinks is not None, NARROW=narrow,
        WIDE=INTERPRETED or not narrow, num_warps=8 if sizes["INSIDE"] else 4, num_stages=2 if narrow else 1,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out


def beyond(nodes: Nodes) -> tuple[Tensor, int]:
    """The slots of what each node sees past its prefix, and how many a line of them has. Where none has any, some numbers that
    no kernel reads."""
    return (nodes.tail.contiguous(), nodes.tail.shape[1]) if nodes.tail.numel() else (nodes.positions, 0)


def key_sizes(keys: Tensor, values: Tensor) -> dict[str, int | bool]:
    """What kernels know of keys and values [rows, kv heads, places, size]: numbers of a key and of a value, to which power of two
    the first part of a key and a value are filled up, and how many positions are taken at once.

    INSIDE: values are the first numbers of keys. Those are the first part of a key then, and what follows is filled up to T
    (0: nothing does); else all of a key is the first part."""
    dim, size = keys.shape[3], values.shape[3]
    inside = values.data_ptr() == keys.data_ptr() and size <= dim
    assert keys.is_contiguous() and (inside or values.is_contiguous())
    wide, wide_value, beside = (
        max(LEAST, triton.next_power_of_2(numbers)) if numbers else 0 for numbers in (size if inside else dim, size, dim - size)
    )
    # as if of each of a key and a value
    line = triton.next_power_of_2(wide + beside) // 2 if inside else max(wide, wide_value)
    return {
        "DIM": dim, "D": wide, "SIZE": size, "S": wide_value, "T": beside if inside else 0, "INSIDE": inside,
        "BLOCK": _block(line * keys.element_size()),
    }  # fmt: skip


def _block(line: int) -> int:
    """Positions at once of keys and values of `line` bytes, a power of two."""
    return max(BLOCK * LINE // max(line, LINE), LEAST)


@triton.jit(do_not_specialize=["width", "kv_heads", "places", "window"])
def _attend(
    query, keys, values, out, sinks, rows, positions, prefixes, tail, width, kv_heads, places, scaling, softcap, window,
    GROUP: tl.constexpr, M: tl.constexpr, TILES: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr,
    S: tl.constexpr, T: tl.constexpr, INSIDE: tl.constexpr, BLOCK: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    SINKS: tl.constexpr, NARROW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    node, head = tl.program_id(0).to(tl.int64), tl.program_id(1) // TILES
    position, prefix = tl.load(positions + node), tl.load(prefixes + node)
    slab = (tl.load(rows + node) * kv_heads + head) * places
    g, c, d = tl.program_id(1) % TILES * M + tl.arange(0, M), tl.arange(0, D), tl.arange(0, S)
    mine = (node * kv_heads + head) * GROUP + g[:, None]
    first: tl.constexpr = SIZE if INSIDE else DIM
    q = tl.load(query + mine * DIM + c[None, :], (g[:, None] < GROUP) & (c[None, :] < first), other=0)
    beside = q
    if T > 0:
        t = tl.arange(0, T)
        beside = tl.load(query + mine * DIM + first + t[None, :], (g[:, None] < GROUP) & (t[None, :] < DIM - first), other=0)
    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    if SINKS:
        top = tl.load(sinks + head * GROUP + g, g < GROUP, other=0).to(tl.float32)
        total += 1
    sums = tl.zeros([M, S], tl.float32)
    low = position * 0
    if WINDOWED:
        low = tl.maximum(position + 1 - window, 0)
    top, total, sums = through(
        q, beside, keys, values, tail, top, total, sums, node, slab, low // BLOCK * BLOCK, low, position + 1, prefix, width, places,
        scaling, softcap, DIM, D, SIZE, S, T, INSIDE, BLOCK, CAPPED, NARROW, True, WIDE,
    )  # fmt: skip
    held = (g[:, None] < GROUP) & (d[None, :] < SIZE)
    tl.store(out + mine * SIZE + d[None, :], (sums / total[:, None]).to(q.dtype), held)


@triton.jit
def through(
    query, beside, keys, values, tail, top, total, sums, node, slab, begin, low, end, prefix, width, places, scaling, softcap,
    DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr, T: tl.constexpr, INSIDE: tl.constexpr,
    BLOCK: tl.constexpr, CAPPED: tl.constexpr, NARROW: tl.constexpr, FINE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Go through what `node` sees of positions `low` to `end`, in blocks from `begin` on: the running softmax of some queries,
    `query` by the first part of a key and `beside` by the rest (see `key_sizes`). FINE: weights keep 16 bits, not 8."""
    c, d = tl.arange(0, D), tl.arange(0, S)
    first: tl.constexpr = SIZE if INSIDE else DIM
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        seen = (place >= low) & (place < end)
        beyond = place >= prefix
        slot = tl.where(beyond, tl.load(tail + node * width + place - prefix, seen & beyond, other=0), place) % places
        line = slab + slot[:, None]
        k = tl.load(keys + line * DIM + c[None, :], seen[:, None] & (c[None, :] < first), other=0)
        scores = _dot(query, tl.trans(k), WIDE)
        if T > 0:
            t = tl.arange(0, T)
            rest = tl.load(keys + line * DIM + first + t[None, :], seen[:, None] & (t[None, :] < DIM - first), other=0)
            scores += _dot(beside, tl.trans(rest), WIDE)
        scores = scores * scaling
        if CAPPED:
            scores = softcap * _tanh(scores / softcap)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        if INSIDE:
            v = k
        else:
            v = tl.load(values + line * SIZE + d[None, :], seen[:, None] & (d[None, :] < SIZE), other=0)
        highest = tl.maximum(top, tl.max(scores, 1))
        fade = tl.exp(top - highest)
        weights = tl.exp(scores - highest[:, None])
        total = total * fade + tl.sum(weights, 1)
        sums = sums * fade[:, None]
        # two bfloat16s hold a weight to 16 bits, and the sum is kept in float32
        if NARROW:
            coarse = weights.to(tl.bfloat16)
            sums += _dot(coarse, v, WIDE)
            if FINE:
                sums += _dot((weights - coarse.to(tl.float32)).to(tl.bfloat16), v, WIDE)
        else:
            sums += _dot(weights, v, WIDE)
        top = highest
    return top, total, sums


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
