"""The draft's products of rows that go to experts, on a GPU: each row times the codes of its expert, all in one launch.

Which expert a row goes to is read on the device. A program takes up to M rows of one expert, beginning with each M-th of its rows,
and one block of outputs, or two; programs of other rows leave at once. So codes are read once for M rows of an expert, and the
codes of experts without rows are not read at all."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .coded_product import added, finish, share_of
from .draft_product import (
    FEW_ROWS,
    FEWEST_ROWS,
    MOST_SHARES,
    PAIRS_RESIDENT,
    PARTS,
    RESIDENT,
    STAGES,
    ColumnShares,
    GroupedProduct,
    running,
    shared_out,
    shifts,
)
from .exact_product import multiply_routed
from .four_bits import last_finishes, share_of_pair

# rows of an expert, on average, from which on a program takes more of them
MANY = 4


class GroupedExperts:
    """The linear maps of the matrices [rows, K] of `experts`: codes uint8 [experts * nb, K, 8 * bits], scales bfloat16
    [groups, experts * nb * 64, 2]; no block is padded. Keeps both tensors and copies neither."""

    def __init__(self, codes: Tensor, scales: Tensor, experts: int) -> None:
        assert len(codes) % experts == 0, f"{len(codes)} blocks of {experts} experts"
        self.experts = experts
        self.blocks = len(codes) // experts
        self.rows = self.blocks * 64
        self.whole = GroupedProduct(codes, scales, len(codes) * 64)
        # by programs of rows and blocks: those that have come; zero between launches. Recorded launches go on using theirs.
        self._counters: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, experts: Tensor, starts: Tensor) -> Tensor:
        """x [m, K] -> [m, rows]: row i times the matrix of expert experts[i], int32, ascending; starts[e] is the first row of
        expert e, and starts[-1] one past the last of all. Rows behind it, which go to none, are of any content."""
        x = x.contiguous()
        count = len(x)
        out = x.new_empty((count, self.rows))
        if not count:
            return out
        narrow = self.whole.bits == 4 and x.dtype == torch.bfloat16 and not INTERPRETED
        tile = FEWEST_ROWS if narrow and count < MANY * self.experts else FEW_ROWS
        # no expert's last program of rows is full
        packed = count > self.experts + count // tile + 1
        places = self.experts + count // tile + 1 if packed else count
        blocks = -(-self.blocks // 2) if narrow else self.blocks
        shares = self._shares(min(places, self.experts) * blocks, narrow)
        sums = places * blocks * shares.count * tile * (129 if narrow else 65 * (shares.count > 1))
        scratch = torch.empty(sums, dtype=torch.float32, device=x.device)
        grid, whole = (count, blocks, shares.count), self.whole
        kernel = _multiply_pairs if narrow else _multiply
        others: dict[str, int] = {} if narrow else {"PARTS": PARTS, "BITS": whole.bits, "WIDE": INTERPRETED}
        kernel[grid](
            x, experts, starts, whole.codes, whole.scales, shifts(whole.bits, x.device), out, scratch,
            self._counters_of(places * blocks), self.experts, self.blocks, M=tile, COLUMNS=whole.columns, GROUP=whole.group,
            STEP=whole.step, ROUNDS=shares.rounds, SHARES=shares.count, PACKED=packed, STAGES=STAGES, **others,
            num_warps=1 if narrow else PARTS, num_stages=STAGES, enable_fp_fusion=True,
        )  # fmt: skip
        return out

    def _shares(self, programs: int, narrow: bool) -> ColumnShares:
        """How the columns are shared out where so many blocks and rows are multiplied."""
        parts, each = (1, PAIRS_RESIDENT) if narrow else (PARTS, RESIDENT)
        steps = -(-self.whole.columns // self.whole.step)
        return shared_out(programs, steps, running(self.whole.codes.device, each), parts, MOST_SHARES)

    def _counters_of(self, count: int) -> Tensor:
        if count not in self._counters:
            self._counters[count] = self.whole.codes.new_zeros(count)
        return self._counters[count]


class WholeExperts:
    """The same for matrices that are kept as they are, in blocks [experts * nb, K, 64]."""

    def __init__(self, blocks: Tensor, experts: int) -> None:
        self.blocks = blocks
        self.each = len(blocks) // experts

    def __call__(self, x: Tensor, experts: Tensor, starts: Tensor) -> Tensor:
        """As `GroupedExperts`."""
        out = x.new_empty((len(x), self.each, 64))
        multiply_routed(x.contiguous(), starts, self.blocks, 0, out)
        return out.flatten(1)


@triton.jit(do_not_specialize=["known", "each"])
def _multiply(
    x, experts, starts, codes, scales, shifts, out, scratch, counters, known, each,
    M: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, SHARES: tl.constexpr,
    PACKED: tl.constexpr, STAGES: tl.constexpr, PARTS: tl.constexpr, BITS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Share number `share` of the columns of block `b`, for up to M rows of an expert of which `row` is the first. The last of its
    shares adds all of them."""
    row, b, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    expert = tl.load(experts + row)
    if expert < known:
        end = tl.load(starts + expert + 1)
        if (row - tl.load(starts + expert)) % M == 0:
            line = row + tl.arange(0, M)
            sums, _ = share_of(
                x, codes, scales, shifts, shifts, line, (expert * each + b).to(tl.int64), share, end, known * each,
                M, COLUMNS, GROUP, STEP, ROUNDS, PARTS, BITS, False, STAGES, WIDE,
            )  # fmt: skip
            if SHARES > 1:
                place = expert + row // M if PACKED else row
                whole = scratch + ((place * each + b) * SHARES).to(tl.int64) * (M * 65)
                tl.store(whole + share * (M * 65) + tl.arange(0, M)[:, None] * 64 + tl.arange(0, 64)[None, :], sums)
                counter = counters + place * each + b
                # all of this program's sums must be written before it says so
                tl.debug_barrier()
                if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SHARES - 1:
                    sums = added(whole, M, SHARES, False, COLUMNS, 0.0)
                    finish(sums, x, out, line, end, 0, b, each * 64, 0, each * 64, 0)
                    tl.store(counter, 0)
            else:
                finish(sums, x, out, line, end, 0, b, each * 64, 0, each * 64, 0)


@triton.jit(do_not_specialize=["known", "each"])
def _multiply_pairs(
    x, experts, starts, codes, scales, shifts, out, scratch, counters, known, each,
    M: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, STEP: tl.constexpr, ROUNDS: tl.constexpr, SHARES: tl.constexpr,
    PACKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The same for codes of 4 bits and two neighbouring blocks; see `four_bits`."""
    row, b, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    expert = tl.load(experts + row)
    if expert < known:
        end = tl.load(starts + expert + 1)
        if (row - tl.load(starts + expert)) % M == 0:
            line = row + tl.arange(0, M)
            word = tl.arange(0, 16)
            begin = 2 * b
            # an odd block is its own neighbour, which writes nothing
            one = expert * each + tl.where(word < 8, begin, tl.minimum(begin + 1, each - 1))
            run = codes + one.to(tl.int64) * COLUMNS * 8 + word % 8
            near = scales + one * 64 + word % 8 * 4
            place = expert + row // M if PACKED else row
            pair = place * tl.num_programs(1) + b
            whole = scratch + (pair * SHARES).to(tl.int64) * (M * 129)
            share_of_pair(
                x, run, near, x, whole + share * (M * 129), line, share, end, known * each,
                M, COLUMNS, GROUP, STEP, ROUNDS, False, STAGES,
            )  # fmt: skip
            last_finishes(
                counters + pair, whole, x, x, out, line, end, 0, begin, each * 64, 0, each * 64, 0.0,
                M, COLUMNS, SHARES, 1, False, False, False, 0,
            )  # fmt: skip
