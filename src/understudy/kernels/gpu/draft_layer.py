"""What a draft's nodes do in one layer between the products of queries, keys and values and that of the output, in one launch:
positions turn queries and keys, keys and values go to the cache, and each node attends.

A program is one node, one head of keys and a share of the positions that the node sees; the share that is done last joins what
all of them found, in one order. No program waits for a key that another one puts in the cache: most nodes of a searched level are
not each other's ancestors, and where they are chains, all keys are put there by a launch before."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layer_states import FullState
from ...tree import Nodes
from ..head_form import HeadForm, Made
from . import INTERPRETED
from .attention import _tanh, key_sizes, through
from .draft_product import running
from .turned_heads import kept, put_all, turned_rows

# programs that keep a multiprocessor busy, positions that are worth a share of their own, and shares at most
BUSY = 8
WORTH = 128
MOST_SHARES = 16
# pairs of a node and a head that may have several shares
PAIRS = 8192
# nodes of chains that go through a layer at once
CHAINED = 64


class LayerAttention:
    """The attention of fused layers on one GPU."""

    def __init__(self, where: str) -> None:
        # for each node and head: programs that are done; zero between launches
        self.counters = torch.zeros(PAIRS, dtype=torch.int32, device=where)

    def __call__(self, made: Tensor, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: HeadForm) -> Tensor:
        """Attention of `nodes`, whose queries, keys and values are side by side in `made` [n, ...], over `state`, which gets their
        keys and values: [n, heads * value size].

        `turns`: cosines and sines [n, angles] of the nodes' positions. Norms in `form` are of each head."""
        spec = form.spec
        assert suits(nodes) and made.is_contiguous()
        keys, values = state.keys, state.values
        count, kv_heads, places = len(made), keys.shape[1], keys.shape[2]
        dim, size = keys.shape[3], values.shape[3]
        heads = form.heads(made.shape[1], kv_heads, dim, size)
        cosines, sines = (turn.contiguous() for turn in turns)
        query, key = (cosines, cosines) if form.norms is None else (norm.weight for norm in form.norms)
        epsilon, turned = form.norms[0].epsilon if form.norms else 0.0, form.turned(cosines.shape[1])
        norms = query, key, epsilon, form.value_epsilon or 0.0
        given = (made, cosines, sines, *norms, keys, values, nodes.rows, nodes.slots, nodes.positions)
        of_keys = key_sizes(keys, values)
        assert not of_keys["INSIDE"], "latent states are attended to by `draft_states`"
        sizes = {name: of_keys[name] for name in ("DIM", "D", "SIZE", "S")} | {
            "KV": kv_heads, "GROUP": heads // kv_heads,
            "NORM": form.norms is not None, "ANGLES": cosines.shape[1], "TURNED": turned, "ORDER": form.turn.order,
            "FIRST": dim - turned if form.last else 0, "WHOLE": made.shape[1], "VALUES": form.made is Made.ALL,
            "VALUE_NORM": form.value_epsilon is not None,
        }  # fmt: skip
        shares = shared_out(count * kv_heads, places, running(made.device, BUSY))
        tile = max(16, triton.next_power_of_2(heads // kv_heads))
        scratch = scratch_of(count * kv_heads * shares, tile, of_keys["S"], made.device)
        out = made.new_empty(count, heads * size)
        narrow = made.dtype == keys.dtype == torch.bfloat16
        held = form.made is Made.QUERIES
        if not searched(nodes) and not held:
            put_all[(count, kv_heads)](*given, places, **sizes, num_warps=1, enable_fp_fusion=True)
        _attend[(count, kv_heads, shares)](
            *given, nodes.prefix, nodes.tail.contiguous(), cosines if form.sinks is None else form.sinks, out, scratch,
            self.counters, nodes.tail.shape[1], places, spec.scaling, spec.softcap, spec.window,
            **sizes, M=tile, BLOCK=of_keys["BLOCK"], SHARES=shares, WORTH=WORTH,
            WINDOWED=spec.window > 0, SINKS=form.sinks is not None, CAPPED=spec.softcap > 0, HELD=held, NARROW=narrow,
            WIDE=INTERPRETED or not narrow, num_warps=4, num_stages=2 if narrow else 1, enable_fp_fusion=True,
        )  # fmt: skip
        return out


def searched(nodes: Nodes) -> bool:
    """Are they a level of a search, of which none is another's ancestor? It is told by shapes alone."""
    return nodes.tail.shape[1] > 0


def suits(nodes: Nodes) -> bool:
    """Are they such a level, or chains of as many nodes as a level has?"""
    return searched(nodes) or len(nodes) <= CHAINED


def shared_out(pairs: int, places: int, room: int) -> int:
    """Shares of the positions, a power of two, where so many pairs of a node and a head see at most `places`, and `room` programs
    run at once. It depends on shapes alone: how many of them have something to do is for each program to see."""
    most = min(MOST_SHARES, max(1, room // pairs), max(1, places // WORTH)) if pairs <= PAIRS else 1
    return 1 << most.bit_length() - 1


def scratch_of(programs: int, tile: int, wide: int, device: torch.device) -> Tensor:
    """Room for what `programs` find: sums [tile, wide], and the highest score and the total of each."""
    return torch.empty(programs * tile * (wide + 2), dtype=torch.float32, device=device)


@triton.jit(do_not_specialize=["width", "places", "window"])
def _attend(
    made, cosines, sines, query_norm, key_norm, epsilon, value_epsilon, keys, values, rows, slots, positions, prefixes, tail, sinks,
    out, scratch, counters, width, places, scaling, softcap, window,
    KV: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr,
    NORM: tl.constexpr, ANGLES: tl.constexpr, TURNED: tl.constexpr, ORDER: tl.constexpr, FIRST: tl.constexpr,
    WHOLE: tl.constexpr, VALUES: tl.constexpr, VALUE_NORM: tl.constexpr, HELD: tl.constexpr,
    M: tl.constexpr, BLOCK: tl.constexpr, SHARES: tl.constexpr, WORTH: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr,
    CAPPED: tl.constexpr, NARROW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    node, head, share = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    position, prefix = tl.load(positions + node), tl.load(prefixes + node)
    begin, end, shares = stretch(position, position, share, window, SHARES, WORTH, WINDOWED)
    if share < shares:
        slab = (tl.load(rows + node) * KV + head) * places
        g, d = tl.arange(0, M), tl.arange(0, S)
        query = turned_rows(
            made, cosines, sines, query_norm, epsilon, node, head * GROUP + g, WHOLE, g < GROUP, DIM, DIM, D, NORM, ANGLES,
            TURNED, ORDER, FIRST,
        ).to(made.dtype.element_ty)
        top = tl.full([M], -float("inf"), tl.float32)
        total = tl.zeros([M], tl.float32)
        sums = tl.zeros([M, S], tl.float32)
        if share == 0:
            place = slab + tl.load(slots + node) % places
            key, value = kept(
                made, cosines, sines, key_norm, epsilon, value_epsilon, node, head, keys, values, place, KV, GROUP, DIM, D, SIZE, S,
                NORM, ANGLES, TURNED, ORDER, FIRST, WHOLE, VALUES, VALUE_NORM, HELD,
            )  # fmt: skip
            top = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * scaling
            if CAPPED:
                top = softcap * _tanh(top / softcap)
            total = tl.full([M], 1.0, tl.float32)
            sums += value.to(tl.float32)[None, :]
        top, total, sums = through(
            query, query, keys, values, tail, top, total, sums, node, slab, begin, begin, end, prefix, width, places, scaling,
            softcap, DIM, D, SIZE, S, 0, False, BLOCK, CAPPED, NARROW, False, WIDE,
        )  # fmt: skip
        lines = (node * KV + head) * GROUP + g
        held = (g < GROUP)[:, None] & (d < SIZE)[None, :]
        # no value comes of a sink, but it is one more score
        sink = tl.full([M], -float("inf"), tl.float32)
        if SINKS:
            sink = tl.load(sinks + head * GROUP + g, g < GROUP, other=-float("inf"))
        hand_in(
            out + lines[:, None] * SIZE + d[None, :], held, scratch, counters, node * KV + head, share, shares, top, total, sums,
            sink, M, S, SHARES,
        )  # fmt: skip


@triton.jit
def stretch(
    position, end, share, window, SHARES: tl.constexpr, WORTH: tl.constexpr, WINDOWED: tl.constexpr
):  # fmt: skip
    """The positions that `share` goes through of those below `end` that a node at `position` sees, from the first to before the
    last; and how many shares have any."""
    low = position * 0
    if WINDOWED:
        low = tl.maximum(position + 1 - window, 0)
    seen = end - low
    shares = tl.minimum(tl.maximum((seen + WORTH - 1) // WORTH, 1), SHARES)
    each = (seen + shares - 1) // shares
    begin = low + share * each
    return begin, tl.minimum(begin + each, end), shares


@triton.jit
def hand_in(
    into, held, scratch, counters, pair, share, shares, top, total, sums, sink,
    M: tl.constexpr, S: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """What one of `shares` programs found for a `pair` of a node and a head; the one that is done last writes what all of them did,
    `into` what is `held`."""
    g, d = tl.arange(0, M), tl.arange(0, S)
    if shares == 1:
        total += tl.exp(sink - top)
        tl.store(into, (sums / total[:, None]).to(into.dtype.element_ty), held)
    else:
        mine = scratch + (pair * SHARES + share) * (M * (S + 2))
        tl.store(mine + g[:, None] * S + d[None, :], sums)
        tl.store(mine + M * S + g, top)
        tl.store(mine + M * S + M + g, total)
        # all of it must be written before this program says so
        tl.debug_barrier()
        if tl.atomic_add(counters + pair, 1, sem="acq_rel", scope="gpu") == shares - 1:
            joined = _joined(scratch + pair * SHARES * (M * (S + 2)), shares, sink, M, S)
            tl.store(into, joined.to(into.dtype.element_ty), held)
            tl.store(counters + pair, 0)


@triton.jit
def _joined(scratch, shares, sink, M: tl.constexpr, S: tl.constexpr):
    """What all shares found [M, S], joined in their order, with one more score `sink` [M]. They are read past the nearest cache."""
    g, d = tl.arange(0, M), tl.arange(0, S)
    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    sums = tl.zeros([M, S], tl.float32)
    for share in range(shares):
        one = scratch + share * (M * (S + 2))
        its_top = tl.load(one + M * S + g, cache_modifier=".cg")
        highest = tl.maximum(top, its_top)
        fade, its = tl.exp(top - highest), tl.exp(its_top - highest)
        total = total * fade + tl.load(one + M * S + M + g, cache_modifier=".cg") * its
        sums = sums * fade[:, None] + tl.load(one + g[:, None] * S + d[None, :], cache_modifier=".cg") * its[:, None]
        top = highest
    return sums / (total + tl.exp(sink - top))[:, None]
