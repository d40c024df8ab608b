"""x @ W.T for a few rows x and weights of 2, 3, 4, 6 or 8 bits, on a GPU: the draft's products, each one launch of `four_bits`
where x is bfloat16 and weights have 4 bits, else of `coded_product`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..join_form import PLAIN, GateKind, JoinForm, Norm, halves
from . import INTERPRETED
from .coded_product import multiply
from .finished_rows import finish_rows
from .four_bits import multiply_pairs

# warps of a program, which share its columns out once more
PARTS = 4
# programs that one multiprocessor holds at once
RESIDENT = 3
# what a program costs beside its rounds, and what adding its share to others does, in rounds
STARTING, ADDING = 1, 1
# rows of x that one launch takes, and those that one of its programs takes: of more numbers in registers there is no room
MOST_ROWS = 64
FEW_ROWS, MANY_ROWS = 16, 32
# shares of the columns at most
MOST_SHARES = 16
# the same for pairs of blocks of 4 bits, whose programs are one warp; how many of those one multiprocessor holds at once, and of
# those for FEW_ROWS
FEWEST_ROWS = 8
PAIRS_RESIDENT = 12
WIDE_RESIDENT = 12
# steps that are on their way from memory while one is computed with, and one
STAGES = 3
# bytes of codes that are loaded at once
ALIGNED = 16
# products that one launch takes
MOST_JOINED = 3
# what `other` is, of the products' results y: nothing; added to y; from OPENED + a gate on: multiplied by y after that gate
ALONE, ADDED, OPENED = 0, 1, 1


class GroupedProduct:
    """The linear map of a weight [rows, K]: codes uint8 [nb, K, 8 * bits], scales bfloat16 [groups, nb * 64, 2]. `blocks`: the only
    ones of them that it multiplies by, all full.

    Keeps both tensors and copies neither."""

    def __init__(self, codes: Tensor, scales: Tensor, rows: int, blocks: range | None = None) -> None:
        assert codes.is_contiguous() and scales.is_contiguous(), "the codes and scales of a whole weight lie together"
        assert codes.data_ptr() % ALIGNED == 0, "codes are loaded 16 bytes at once"
        # of the whole weight: blocks whose scales of one group lie together
        self.together, self.columns = codes.shape[:2]
        own = range(self.together) if blocks is None else blocks
        self.rows, self.count = rows if blocks is None else len(own) * 64, len(own)
        self.codes = codes[own.start : own.stop].view(torch.int32)
        self.scales = scales.view(torch.int32)[:, own.start * 64 : own.stop * 64]
        self._kept = (codes, scales)
        self.bits = codes.shape[2] // 8
        self.group = self.columns // scales.shape[0]
        self.step = next(size for size in (64, 32, 16) if self.group % size == 0)
        self._alone = JoinedGrouped([self])

    def __call__(self, x: Tensor) -> Tensor:  # [m, K] -> [m, rows]
        return self._alone(x)

    @property
    def halves(self) -> list[GroupedProduct]:
        """The products by the first and by the last half of its outputs; empty where these do not lie in blocks of their own."""
        return [GroupedProduct(*self._kept, self.rows, part) for part in halves(self.rows)]


class JoinedGrouped:
    """Several products of the same rows, as `form` says. Products whose codes have as many bits and columns in a group are one
    launch; where a norm comes after them, or a factor, that is one more."""

    def __init__(self, products: Sequence[GroupedProduct], form: JoinForm = PLAIN) -> None:
        gate, self.form = form.gate, form
        assert (not gate or len(products) <= MOST_JOINED) and len({product.columns for product in products}) == 1
        self.columns = products[0].columns
        self.outputs = products[0].rows if gate else sum(product.rows for product in products)
        biases = list(form.biases) or [None] * len(products)
        kinds = [(product.bits, product.group) for product in products]
        cuts: list[int] = []
        for i in range(1, len(kinds)):
            if kinds[i] != kinds[i - 1] or i - (cuts or [0])[-1] == MOST_JOINED:
                cuts.append(i)
        self.launches = [
            ProductLaunch(products[first:last], form.norm, biases[first:last], None if cuts else gate)
            for first, last in pairwise([0, *cuts, len(kinds)])
        ]
        self.apart = bool(gate and cuts)

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """x [m, K] -> [m, outputs], with `added` of that shape added."""
        x = x.contiguous()
        if self.form.after is None and self.form.times == self.form.scale == 1:
            return self._multiplied(x, added)
        out = self._multiplied(x, None)
        finish_rows(out, added, self.form)
        return out

    def _multiplied(self, x: Tensor, added: Tensor | None) -> Tensor:
        out = x.new_empty((len(x), self.outputs))
        if self.apart:
            assert added is None and self.form.gate is not None
            first, second = self.launches
            gate = x.new_empty((len(x), self.outputs), dtype=torch.float32)
            first(x, gate)
            second(x, out, gate, OPENED + self.form.gate)
            return out
        place = 0
        for launch in self.launches:
            part = out[:, place : place + launch.outputs]
            if added is None:
                launch(x, part)
            else:
                launch(x, part, added[:, place : place + launch.outputs], ADDED)
            place += launch.outputs
        return out


@dataclass(frozen=True)
class ColumnShares:
    """How the columns of a launch are shared out."""

    # shares, each of so many rounds in which every warp takes a step
    count: int
    rounds: int


class ProductLaunch:
    """Up to three products of one kind in one launch of the kernel."""

    def __init__(
        self, products: Sequence[GroupedProduct], norm: Norm | None, biases: Sequence[Tensor | None], gate: GateKind | None
    ) -> None:
        self.products, self.norm, self.gate = tuple(products), norm, gate
        first = products[0]
        self.columns, self.step = first.columns, first.step
        self.blocks = sum(product.count for product in products)
        self.outputs = first.rows if gate else sum(product.rows for product in products)
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            none = first.codes.new_zeros(max(product.rows for product in products), dtype=torch.float32)
            pairs = zip(products, biases, strict=True)
            self.bias = torch.cat([none[: product.rows] if bias is None else bias.float() for product, bias in pairs])
        steps = -(-self.columns // self.step)
        self.shares = shared_out(self.blocks, steps, running(first.codes.device, RESIDENT), PARTS, MOST_SHARES)
        # Two blocks of a matrix, or one of both that are gated.
        self.pairs = first.count if gate else sum(-(-product.count // 2) for product in products)
        self.pair_shares = {
            tile: shared_out(self.pairs, steps, running(first.codes.device, each), 1, MOST_SHARES)
            for tile, each in ((FEW_ROWS, WIDE_RESIDENT), (FEWEST_ROWS, PAIRS_RESIDENT))
        }
        self.shifts = shifts(first.bits, first.codes.device)
        # of each block of outputs and tile of rows: programs that have come; zero between launches
        self.counters = first.codes.new_zeros(self.blocks * (MOST_ROWS // FEW_ROWS))

    def __call__(self, x: Tensor, out: Tensor, other: Tensor | None = None, what: int = ALONE) -> None:
        """Put the products of x [m, K] in out [m, outputs]."""
        for start in range(0, len(x), MOST_ROWS):
            part = slice(start, start + MOST_ROWS)
            self._some(x[part], out[part], None if other is None else other[part], what)

    def _some(self, x: Tensor, out: Tensor, other: Tensor | None, what: int) -> None:
        if self.products[0].bits == 4 and x.dtype == torch.bfloat16 and not INTERPRETED:
            self._pairs(x, out, other, what)
            return
        tile = FEW_ROWS if len(x) <= FEW_ROWS or x.dtype == torch.float32 else MANY_ROWS
        tiles = -(-len(x) // tile)
        joined = self.gate is not None or self.shares.count > 1
        parts = tiles * self.blocks * self.shares.count if joined else 0
        scratch = torch.empty(parts * tile * 65, dtype=torch.float32, device=x.device)
        multiply[(self.blocks, self.shares.count, tiles)](
            x, *self._weights, self.shifts, *self._around(other), out, scratch, self.counters, *self._numbers(x, out, other),
            M=tile, STEP=self.step, ROUNDS=self.shares.rounds, PARTS=PARTS, SHARES=self.shares.count,
            BITS=self.products[0].bits, WIDE=INTERPRETED, **self._kind(what), num_warps=PARTS, num_stages=STAGES,
            enable_fp_fusion=True,
        )  # fmt: skip

    def _pairs(self, x: Tensor, out: Tensor, other: Tensor | None, what: int) -> None:
        tile = FEWEST_ROWS if len(x) <= FEWEST_ROWS else FEW_ROWS
        tiles, shares = -(-len(x) // tile), self.pair_shares[tile]
        scratch = torch.empty(tiles * self.pairs * shares.count * tile * 129, dtype=torch.float32, device=x.device)
        multiply_pairs[(self.pairs, shares.count, tiles)](
            x, *self._weights, *self._around(other), out, scratch, self.counters, *self._numbers(x, out, other),
            N=tile, STEP=self.step, ROUNDS=shares.rounds, SHARES=shares.count, **self._kind(what),
            num_warps=1, num_stages=STAGES, enable_fp_fusion=True,
        )  # fmt: skip

    @cached_property
    def _three(self) -> tuple[GroupedProduct, ...]:
        """The products, the last one as often as it takes to make three."""
        return (*self.products, *self.products[-1:] * MOST_JOINED)[:MOST_JOINED]

    @cached_property
    def _weights(self) -> tuple[Tensor, ...]:
        return tuple(tensor for product in self._three for tensor in (product.codes, product.scales))

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """Blocks of three products whose scales of a group lie together, then rows. What is gated may be half of a weight."""
        assert self.gate is not None or all(product.count == product.together for product in self.products)
        return (*(product.together for product in self._three), *(product.rows for product in self._three))

    def _around(self, other: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The norm's weight, the bias and `other`; any tensor for what there is none of."""
        norm, bias = None if self.norm is None else self.norm.weight, self.bias
        first, second, third = (self.shifts if tensor is None else tensor for tensor in (norm, bias, other))
        return first, second, third

    def _numbers(self, x: Tensor, out: Tensor, other: Tensor | None) -> tuple[float, ...]:
        """Rows of x, blocks and rows of three products, the strides of `other` and `out`, and the norm's epsilon."""
        apart = 0 if other is None else other.stride(0), out.stride(0)
        return (len(x), *self._sizes, *apart, 0.0 if self.norm is None else self.norm.epsilon)

    def _kind(self, what: int) -> dict[str, int]:
        """What both kernels are compiled for; `what` is done with `other`."""
        return {
            "COLUMNS": self.columns, "GROUP": self.products[0].group, "MATRICES": len(self.products), "GATED": self.gate or 0,
            "NORM": self.norm is not None, "BIAS": self.bias is not None, "OTHER": what, "STAGES": STAGES,
        }  # fmt: skip


def shared_out(blocks: int, steps: int, room: int, parts: int, most: int) -> ColumnShares:
    """The shares, at most `most`, in which `blocks` blocks of `steps` steps of columns are done first, where `room` programs of
    `parts` warps run at once."""

    def cost(count: int) -> int:
        rounds = -(-steps // (count * parts))
        return -(-blocks * count // room) * (rounds + STARTING + ADDING * (count > 1))

    count = min(range(1, max(1, min(most, -(-steps // parts))) + 1), key=cost)
    rounds = -(-steps // (count * parts))
    return ColumnShares(-(-steps // (rounds * parts)), rounds)


@cache
def running(device: torch.device, each: int) -> int:
    """How many programs run at once on `device`, if a multiprocessor runs `each`; Triton's interpreter runs one."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) * each if device.type == "cuda" else 1


@cache
def shifts(bits: int, device: torch.device) -> Tensor:
    """Where codes lie in a column's 32-bit words: for codes of 4 and 8 bits the shift of each code of a word, for others two
    tables: of the low 2 bits of each code (4, of codes of 6), and where a third, or the upper two, lie.

    They are loaded, not computed: only then does the compiler leave the codes in the registers in which the matrix units want
    them."""
    if bits in (4, 8):
        return torch.arange(0, 32, bits, dtype=torch.int32, device=device)
    if bits == 6:
        i, w = torch.arange(8)[:, None], torch.arange(8)[None, :]
        upper = 8 * (i // 2) + 2 * (w // 4 + 2 * (i % 2))
        return torch.cat([torch.arange(0, 32, 4, dtype=torch.int32), upper.flatten().int()]).to(device)
    low = torch.arange(0, 32, 2, dtype=torch.int32)
    i, w = torch.arange(16)[:, None], torch.arange(4)[None, :]
    third = 8 * (i // 4) + w // 2 + 2 * (i % 4)
    return torch.cat([low, third.flatten().int()]).to(device)
