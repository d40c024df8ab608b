"""What a draft's nodes do over latent states on a GPU, between the products before attention and that of the output, in three
launches (multi-head latent attention: DeepSeek-V2, arXiv 2405.04434): the states are kept in the cache with what is turned of
keys, a product makes of queries what meets the states, and each node attends.

A program of the last is one node, some heads of queries and a share of the positions that the node sees; the share that is done
last joins what all of them found, as in `draft_layer`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layer_states import FullState
from ...tree import Nodes
from ..state_form import StateForm, StateRows
from . import INTERPRETED
from .attention import LEAST, beyond, key_sizes, through
from .draft_layer import BUSY, PAIRS, WORTH, hand_in, scratch_of, shared_out, stretch
from .draft_product import running
from .turned_heads import turned_rows


class StateAttention:
    """The attention over latent states of fused layers on one GPU."""

    def __init__(self, where: str) -> None:
        # for each node and tile of heads: programs that are done; zero between launches
        self.counters = torch.zeros(PAIRS, dtype=torch.int32, device=where)

    def __call__(
        self, rows: StateRows, turns: tuple[Tensor, Tensor], state: FullState, nodes: Nodes, form: StateForm
    ) -> Tensor:
        """As `kernels.draft_states.attend_states`."""
        query, keys, spec = rows.query, state.keys, form.heads.spec
        count, heads, each = query.shape
        plain, beside, places = form.asked.columns, keys.shape[3] - form.rank, keys.shape[2]
        sizes, (cosines, sines) = key_sizes(keys, state.values), (turn.contiguous() for turn in turns)
        assert sizes["INSIDE"] and each == plain + beside and rows.turned.shape[1] == beside
        angles = {
            "ANGLES": cosines.shape[1], "TURNED": form.heads.turned(cosines.shape[1]), "ORDER": form.heads.turn.order,
        }  # fmt: skip
        assert rows.state.stride(1) == rows.turned.stride(1) == query.stride(2) == 1 and query.stride(1) == each
        _keep[(count,)](
            rows.state, rows.turned, cosines, sines, form.norm.weight, form.norm.epsilon, keys, nodes.rows, nodes.slots,
            rows.state.stride(0), rows.turned.stride(0), places, RANK=form.rank, R=sizes["D"], REST=beside, T=sizes["T"], **angles,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        asked = form.asked(query[..., :plain])
        tiles = triton.cdiv(heads, LEAST)
        shares = shared_out(count * tiles, places, running(query.device, BUSY))
        scratch = scratch_of(count * tiles * shares, LEAST, sizes["S"], query.device)
        tail, width = beyond(nodes)
        out, narrow = query.new_empty(count, heads * form.rank), query.dtype == keys.dtype == torch.bfloat16
        sinks = cosines if form.heads.sinks is None else form.heads.sinks
        _attend_states[(count, tiles, shares)](
            asked, query[..., plain:], cosines, sines, keys, nodes.rows, nodes.positions, nodes.prefix, tail, sinks, out, scratch,
            self.counters, width, places, query.stride(0), spec.scaling, spec.softcap, spec.window,
            HEADS=heads, EACH=each, **sizes, **angles, M=LEAST, TILES=tiles, SHARES=shares, WORTH=WORTH,
            WINDOWED=spec.window > 0, SINKS=form.heads.sinks is not None, CAPPED=spec.softcap > 0, NARROW=narrow,
            WIDE=INTERPRETED or not narrow, num_warps=8, num_stages=2 if narrow else 1, enable_fp_fusion=True,
        )  # fmt: skip
        return out


@triton.jit(do_not_specialize=["places"])
def _keep(
    states, turned, cosines, sines, norm, epsilon, keys, rows, slots, state_line, turned_line, places,
    RANK: tl.constexpr, R: tl.constexpr, REST: tl.constexpr, T: tl.constexpr, ANGLES: tl.constexpr, TURNED: tl.constexpr,
    ORDER: tl.constexpr,
):  # fmt: skip
    """The state of one node, normed, goes to the cache, and what is turned of its key behind it."""
    node, r = tl.program_id(0).to(tl.int64), tl.arange(0, R)
    state = tl.load(states + node * state_line + r, r < RANK, other=0).to(tl.float32)
    factor = 1 / tl.sqrt(tl.sum(state * state, 0) / RANK + epsilon)
    kept = state * factor * tl.load(norm + r, r < RANK, other=0)
    line = keys + (tl.load(rows + node) * places + tl.load(slots + node) % places) * (RANK + REST)
    tl.store(line + r, kept.to(keys.dtype.element_ty), r < RANK)
    if T > 0:
        one, t = tl.arange(0, 1), tl.arange(0, T)
        made = turned_rows(
            turned, cosines, sines, norm, epsilon, node, one, turned_line, one == 0, REST, REST, T, False, ANGLES, TURNED, ORDER, 0
        )
        tl.store(line + RANK + t[None, :], made.to(keys.dtype.element_ty), (t < REST)[None, :])


@triton.jit(do_not_specialize=["width", "places", "window"])
def _attend_states(
    asked, queries, cosines, sines, keys, rows, positions, prefixes, tail, sinks, out, scratch, counters, width, places, whole,
    scaling, softcap, window,
    HEADS: tl.constexpr, EACH: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr,
    T: tl.constexpr, INSIDE: tl.constexpr, BLOCK: tl.constexpr, ANGLES: tl.constexpr, TURNED: tl.constexpr, ORDER: tl.constexpr,
    M: tl.constexpr, TILES: tl.constexpr, SHARES: tl.constexpr, WORTH: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr,
    CAPPED: tl.constexpr, NARROW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """`asked` [n, HEADS, SIZE] meet the states; what follows in lines of EACH numbers, at `queries`, is turned here."""
    node, tile, share = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    position, prefix = tl.load(positions + node), tl.load(prefixes + node)
    begin, end, shares = stretch(position, position + 1, share, window, SHARES, WORTH, WINDOWED)
    if share < shares:
        slab = tl.load(rows + node) * places
        g, d = tile * M + tl.arange(0, M), tl.arange(0, S)
        lines = node * HEADS + g
        held = (g < HEADS)[:, None] & (d < SIZE)[None, :]
        query = tl.load(asked + lines[:, None] * SIZE + d[None, :], held, other=0)
        beside = query
        if T > 0:
            beside = turned_rows(
                queries, cosines, sines, cosines, 0.0, node, g, whole, g < HEADS, EACH, DIM - SIZE, T, False, ANGLES, TURNED,
                ORDER, 0,
            ).to(query.dtype)  # fmt: skip
        top = tl.full([M], -float("inf"), tl.float32)
        total, sums = tl.zeros([M], tl.float32), tl.zeros([M, S], tl.float32)
        top, total, sums = through(
            query, beside, keys, keys, tail, top, total, sums, node, slab, begin, begin, end, prefix, width, places, scaling,
            softcap, DIM, D, SIZE, S, T, INSIDE, BLOCK, CAPPED, NARROW, False, WIDE,
        )  # fmt: skip
        sink = tl.full([M], -float("inf"), tl.float32)
        if SINKS:
            sink = tl.load(sinks + g, g < HEADS, other=-float("inf"))
        hand_in(
            out + lines[:, None] * SIZE + d[None, :], held, scratch, counters, node * TILES + tile, share, shares, top, total, sums,
            sink, M, S, SHARES,
        )  # fmt: skip
