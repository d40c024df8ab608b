"""Weights that are published as codes of four bits with scales, made bfloat16: vector code for the columns that share a scale.

A weight is its code less the zero point of its row there, times the row's scale there, in float32, rounded once. The zero point of
all is CENTRE where none are told. Weights of GPTQ are rounded to float16 before that. Weights of a float16 model are rounded to
float16 alone, and made float32, as they are multiplied."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from .bfdot import Brain, widened
from .float_dot import SMALLEST, halves_widened
from .instructions import has
from .vector import BYTE, FLOAT, HALF, LONG, WORD, Code, Vector

# bytes of the codes of a column of 64 rows: rows in order in the lower halves of bytes, then in the upper ones
CODES = 32
# the zero point of codes that have none of their own, and the largest code
CENTRE, MOST = 8, 15
SIDE, RUN, HALVES = Vector(FLOAT, 32), Vector(BYTE, 32), Vector(HALF, 32)
WIDE, PART = Vector(WORD, 32), Vector(FLOAT, 16)


class _ScaledFours(Code):
    """Code for the columns of one block that share scales, at the address `scales`, of 2 bytes each if `brief` (a truth of LLVM's),
    and zero points at `zeros`, if that is not 0. `halved`: weights are float16 on the way; `halves`: and stay such, as float32."""

    def __init__(
        self, context: Any, builder: Any, scales: Any, zeros: Any, brief: Any, *, halved: bool, halves: bool
    ) -> None:
        super().__init__(context, builder)
        b = builder
        self.halved, self.halves = halved, halves
        self.brains = has("avx512bf16", "avx512bw")
        self.scales, self.zeros = [], []
        for side in range(2):
            self.scales.append(self.either(brief, self.from_halves, self.from_floats, scales, 32 * side))
            none = b.icmp_signed("==", zeros, LONG(0))
            self.zeros.append(self.either(none, self.centre, self.from_bytes, zeros, 32 * side))

    def either(self, truth: Any, first: Any, second: Any, address: Any, row: int) -> Any:
        """What `first` reads for 32 rows from `row` on, or else `second`."""
        found = []
        with self.b.if_else(truth) as ways:
            for way, read in zip(ways, (first, second), strict=True):
                with way:
                    found.append((read(address, row), self.b.block))
        chosen = self.b.phi(SIDE)
        for value, block in found:
            chosen.add_incoming(value, block)
        return chosen

    def from_halves(self, address: Any, row: int) -> Any:
        return (halves_widened if self.halves else widened)(self, self.load(self.at(address, 2 * row), HALVES))

    def from_floats(self, address: Any, row: int) -> Any:
        return self.load(self.at(address, 4 * row), SIDE)

    def from_bytes(self, address: Any, row: int) -> Any:
        return self.b.sitofp(self.load(self.at(address, row), RUN), SIDE)

    def centre(self, address: Any, row: int) -> Any:
        return self.all(SIDE, CENTRE)

    def column(self, codes: Any, out: Any) -> None:
        """Write the 64 weights whose codes lie at `codes`."""
        b = self.b
        run = self.load(codes, RUN)
        sides = b.and_(run, self.all(RUN, MOST)), b.lshr(run, self.all(RUN, 4))
        for side, (own, zero, scale) in enumerate(zip(sides, self.zeros, self.scales, strict=True)):
            # as whole numbers with a sign, which are made floats in one step
            steps = b.fsub(b.sitofp(b.zext(own, WIDE), SIDE), zero)
            product = b.fmul(steps, scale)
            product = self.as_half(product) if self.halved or self.halves else product
            if self.halves:
                self.store(product, self.at(out, 128 * side))
            else:
                self.store(self.rounded(product), self.at(out, 64 * side))

    def as_half(self, numbers: Any) -> Any:
        """32 numbers as float16 would hold them, which not every processor can make: none is too large for it. A small one that is
        a whole number times a float16 needs no rounding, here and there; scales of weights that stay float16 may be others."""
        b = self.b
        bits = b.bitcast(numbers, WIDE)
        odd = b.and_(b.lshr(bits, self.all(WIDE, 13)), self.all(WIDE, 1))
        usual = b.bitcast(b.and_(b.add(bits, b.add(odd, self.all(WIDE, 0xFFF))), self.all(WIDE, -0x2000)), SIDE)
        if not self.halves:
            return usual
        # a small one is rounded to a whole number times 2 ** -24, as far as numbers near this one are apart
        near = self.all(SIDE, 0.75)
        small = b.fsub(b.fadd(numbers, near), near)
        magnitude = b.and_(bits, self.all(WIDE, 0x7FFFFFFF))
        return b.select(b.icmp_unsigned("<", magnitude, self.all(WIDE, SMALLEST)), small, usual)

    def rounded(self, numbers: Any) -> Any:
        """32 numbers as the nearest bfloat16, of two the even one. None is NaN, or so small that it counts as zero to some."""
        b = self.b
        if self.brains:
            parts = [self.pick(numbers, numbers, list(range(first, first + 16))) for first in (16, 0)]
            # the one that comes first is the upper half
            made = self.intrinsic("llvm.x86.avx512bf16.cvtne2ps2bf16.512", Vector(Brain(), 32), *parts)
            return b.bitcast(made, HALVES)
        bits = b.bitcast(numbers, WIDE)
        odd = b.and_(b.lshr(bits, self.all(WIDE, 16)), self.all(WIDE, 1))
        nearest = b.add(bits, b.add(odd, self.all(WIDE, 0x7FFF)))
        return b.trunc(b.lshr(nearest, self.all(WIDE, 16)), HALVES)


def _reader(*, halved: bool = False, halves: bool = False) -> Any:
    """Code for use in a kernel: makes `columns` columns of one block, which share scales and zero points, at `out`; scales take
    `stride` bytes, and all others are addresses. `halved`, `halves`: see `_ScaledFours`."""
    line = LONG(8 if halves else 7)

    @intrinsic
    def read_scaled(typing: Any, codes: Any, scales: Any, zeros: Any, stride: Any, columns: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, zeros, stride, columns, out = arguments
            brief = builder.icmp_signed("==", stride, LONG(128))
            code = _ScaledFours(context, builder, scales, zeros, brief, halved=halved, halves=halves)
            with code.over(columns, 1) as (column, _):
                code.column(code.at(codes, builder.mul(column, LONG(CODES))), code.at(out, builder.shl(column, line)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return read_scaled


read_scaled, read_halved, read_halves = _reader(), _reader(halved=True), _reader(halves=True)
