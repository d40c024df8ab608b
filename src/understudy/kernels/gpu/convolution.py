"""The short convolution of recurrent layers on a GPU, along the path of each node (`kernels.recurrence`): one launch for all nodes.

Every sum runs over the taps in the order of positions, in float32, and nothing is fused."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...recurrent import RecurrentState
from ...tree import Nodes
from .node_paths import path_of, tail_of

# channels that a program has
CHANNELS = 512


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, state: RecurrentState, nodes: Nodes) -> Tensor:
    """Convolution of x [n, channels] with weight [channels, taps] along the path of each node, whose last tap is the node itself.

    Records x at the slots of `nodes`; returns [n, channels] of x's dtype, rounded once. Before a text there are zeros. At
    most so many nodes as `most_walked` says."""
    count, channels = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    out = torch.empty((count, channels), dtype=x.dtype, device=x.device)
    tail, width = tail_of(nodes)
    step = min(CHANNELS, triton.next_power_of_2(channels))
    _convolve[(count, triton.cdiv(channels, step))](
        x, weight.contiguous(), weight if bias is None else bias, state.inputs, out, nodes.rows, nodes.slots, nodes.positions,
        nodes.prefix, tail, width, state.places, x.stride(0), CHANNELS=channels, TAPS=weight.shape[1], BIAS=bias is not None,
        STEP=step, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["width", "places", "line"])
def _convolve(
    x, weight, bias, inputs, out, rows, slots, positions, prefixes, tail, width, places, line,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, BIAS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Some channels of one node."""
    node = tl.program_id(0).to(tl.int64)
    row, slot, position = tl.load(rows + node), tl.load(slots + node), tl.load(positions + node)
    c = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = c < CHANNELS
    total = tl.zeros([STEP], tl.float32)
    if BIAS:
        total = tl.load(bias + c, inside, other=0).to(tl.float32)
    for tap in tl.static_range(TAPS):
        at = position - (TAPS - 1 - tap) + tl.zeros([1], tl.int64)
        _, fresh, index, place = path_of(at, node, row, slot, position, prefixes, tail, width, rows, slots, places, False)
        old = tl.load(inputs + (row * places + place) * CHANNELS + c, inside & (at >= 0) & ~fresh, other=0)
        new = tl.load(x + index * line + c, inside & (at >= 0) & fresh, other=0).to(inputs.dtype.element_ty)
        found = tl.where(fresh, new, old).to(tl.float32)
        total = total + found * tl.load(weight + c * TAPS + tap, inside, other=0).to(tl.float32)
    tl.store(out + node * CHANNELS + c, total.to(out.dtype.element_ty), inside)
    own = tl.load(x + node * line + c, inside, other=0).to(inputs.dtype.element_ty)
    tl.store(inputs + (row * places + slot % places) * CHANNELS + c, own, inside)
