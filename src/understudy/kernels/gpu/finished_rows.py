"""Rows of products that are finished in a launch of their own, where the whole row must be known: times a factor, through a norm,
with other rows added, and scaled."""

import triton
import triton.language as tl
from torch import Tensor

from ..join_form import JoinForm


def finish_rows(y: Tensor, added: Tensor | None, form: JoinForm) -> None:
    """y [m, outputs], in place: times `form.times`, through `form.after`, with `added` of that shape added, times `form.scale`."""
    norm = form.after
    other, weight = (y if tensor is None else tensor for tensor in (added, None if norm is None else norm.weight))
    _finish_rows[(len(y),)](
        y, other, weight, y.stride(0), other.stride(0), form.times, form.scale,
        0.0 if norm is None else norm.epsilon,
        COLUMNS=y.shape[1], C=triton.next_power_of_2(y.shape[1]), NORM=norm is not None, ADDED=added is not None, num_warps=8,
        enable_fp_fusion=True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["apart", "beside"])
def _finish_rows(
    y, other, weight, apart, beside, times, scale, epsilon,
    COLUMNS: tl.constexpr, C: tl.constexpr, NORM: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, C)
    held = c < COLUMNS
    x = tl.load(y + row * apart + c, held, other=0).to(tl.float32) * times
    if NORM:
        x = x / tl.sqrt(tl.sum(x * x, 0) / COLUMNS + epsilon) * tl.load(weight + c, held, other=0)
    if ADDED:
        x += tl.load(other + row * beside + c, held, other=0).to(tl.float32)
    tl.store(y + row * apart + c, (x * scale).to(y.dtype.element_ty), held)
