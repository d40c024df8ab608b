"""Rows on their way to experts and back, on a GPU: sorted in one launch and added up in one. The host waits for nothing."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..expert_kernels import ExpertPlaces
from .exact_product import multiply_routed, multiply_whole

# choices that a program looks at together
MOST_CHOICES = 1024
# columns that a program adds up
COLUMNS = 1024


class TritonExperts:
    """`kernels.expert_kernels.ExpertKernels`."""

    def decide(self, x: Tensor, weight: Tensor) -> Tensor:
        """As the protocol says."""
        return multiply_whole(x, weight)

    def places(self, chosen: Tensor, experts: int) -> ExpertPlaces:
        """As the protocol says. `chosen` may be of any type of whole numbers."""
        nodes, each = chosen.shape
        count, where = nodes * each, chosen.device
        places = ExpertPlaces(
            nodes=torch.empty(count, dtype=torch.int64, device=where),
            experts=torch.empty(count, dtype=torch.int32, device=where),
            starts=torch.empty(experts + 1, dtype=torch.int32, device=where),
            rows=torch.empty((nodes, each), dtype=torch.int32, device=where),
        )
        _places[(experts + 1,)](
            chosen.contiguous(), places.nodes, places.experts, places.starts, places.rows, count, K=each,
            STEP=min(MOST_CHOICES, triton.next_power_of_2(max(count, 16))), enable_fp_fusion=False,
        )  # fmt: skip
        return places

    def multiply(self, x: Tensor, starts: Tensor, blocks: Tensor, first: int, out: Tensor) -> None:
        """As the protocol says."""
        multiply_routed(x, starts, blocks, first, out)

    def add(self, given: Tensor, places: ExpertPlaces, weights: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        """As the protocol says."""
        assert given.is_contiguous() and weights.shape == places.rows.shape
        nodes, each = weights.shape
        columns = given.shape[1]
        total = torch.empty((count, columns), dtype=dtype, device=given.device)
        step = min(COLUMNS, triton.next_power_of_2(columns))
        # products and sums are rounded one after the other, as torch's are
        _add[(count, triton.cdiv(columns, step))](
            given, places.rows, places.starts[-1:], weights.contiguous(), total, nodes, columns,
            K=each, LANES=triton.next_power_of_2(each), STEP=step, enable_fp_fusion=False,
        )  # fmt: skip
        return total


@triton.jit(do_not_specialize=["count"])
def _places(chosen, nodes, experts, starts, rows, count, K: tl.constexpr, STEP: tl.constexpr):
    """Expert number `e` finds its rows: behind those of all experts before it, in the order of the choices. The program after the
    last expert's does so for what goes to none."""
    e, last = tl.program_id(0), tl.num_programs(0) - 1
    lane = tl.arange(0, STEP)
    before = 0
    for first in range(0, count, STEP):
        place = first + lane
        expert = tl.load(chosen + place, place < count, other=last).to(tl.int32)
        before += tl.sum((expert < e).to(tl.int32), 0)
    tl.store(starts + e, before)
    for first in range(0, count, STEP):
        place = first + lane
        expert = tl.load(chosen + place, place < count, other=0).to(tl.int32)
        mine = (tl.minimum(expert, last) == e) & (place < count)
        row = before + tl.cumsum(mine.to(tl.int32), 0) - 1
        tl.store(nodes + row, (place // K).to(tl.int64), mine)
        tl.store(experts + row, e, mine)
        tl.store(rows + place, row, mine)
        before += tl.sum(mine.to(tl.int32), 0)


@triton.jit(do_not_specialize=["nodes"])
def _add(
    given, rows, end, weights, total, nodes, columns, K: tl.constexpr, LANES: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """Some columns of one node: its rows in their order, which is that of the experts."""
    node = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = column < columns
    lane = tl.arange(0, LANES)
    known = lane < tl.where(node < nodes, K, 0)
    after = tl.load(end)
    row = tl.load(rows + node * K + lane, known, other=2147483647)
    weight = tl.load(weights + node * K + lane, known, other=0).to(tl.float32)
    found = tl.zeros([STEP], tl.float32)
    last = -1
    for _ in tl.static_range(K):
        last = tl.min(tl.where(row > last, row, 2147483647), 0)
        share = tl.sum(tl.where(row == last, weight, 0.0), 0)
        there = column < tl.where(last < after, columns, 0)
        part = tl.load(given + last.to(tl.int64) * columns + column, there, other=0).to(tl.float32)
        found = tl.where(there, found + part * share, found)
    tl.store(total + node * columns + column, found.to(total.dtype.element_ty), inside)
