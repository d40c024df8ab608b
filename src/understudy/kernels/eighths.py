"""Weights that are few numbers times a scale, beside a copy: vector code that reads them.

In units of its scale a weight that is published in FP8 is a float of three bits behind the point, eight to a doubling. Its pattern
is the upper 12 bits of that float32. The code of its copy stands for a bin of such numbers, and a weight is its place among them,
counted from the bin's far end: what `residual_packed` does with patterns of 16 bits is done with these. A bin of n numbers takes as
many bits as n - 1 has (DENSE at least, MOST at most); where it straddles zero it takes MOST bits, and one for the side.
The last place that MOST bits can say is a zero. What is found is multiplied by the scale in float32 and rounded to bfloat16.

Bins are WIDER by a little than their codes say: a weight was rounded before its copy was made."""

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from .bfdot import Brain, rounded
from .codes import Codes
from .compiled import bits_of, machine_code
from .descriptor import tile_run
from .instructions import has
from .residual_packed import BELOW, SIDE, PackedTile, widest
from .vector import BIT, FLOAT, FLOATS, HALF, LONG, WORDS, Vector

# bits of a place in the widest bin, and the place that is a zero there
MOST = 6
ZERO = (1 << MOST) - 1
# by how much of a scale a bin is wider at each end, by bits of a code: the more codes, the more of a scale a weight was rounded by
WIDER = {2: 1 / 64, 3: 1 / 64, 4: 1 / 64, 6: 1 / 32, 8: 1 / 4}
# bits of a float32 below its pattern
BELOW_PATTERN = 20
BYTES_OF_FACTORS = 256
# bits every weight's place has, by bits of a code: 8 bytes each for a column
DENSE = {2: 3, 3: 2, 4: 1, 6: 0, 8: 0}


class EighthsTile(PackedTile):
    """Code that reads the columns of one tile, which share scales of the copy, at `scales`, and their factors: a float32 for each
    row at `factors`, or one for all if `shared`."""

    most = MOST

    def __init__(
        self, context: Any, builder: Any, bits: int, scales: Any, width: int, factors: Any, shared: bool
    ) -> None:
        Codes.__init__(self, context, builder, bits)
        self.half = 0.5 + WIDER[bits]
        b = builder
        self.factors, self.inverse = self.room(FLOATS, 4), self.room(FLOATS, 4)
        one = self.spread(self.load(factors, FLOAT, 4))
        for v in range(4):
            own = one if shared else self.load(self.at(factors, 64 * v), FLOATS, 4)
            self.store(own, self.at(self.factors, 64 * v), 4)
            self.store(b.fdiv(self.all(FLOATS, 1.0), own), self.at(self.inverse, 64 * v), 4)
        super().__init__(context, builder, bits, scales, width)
        self.shift = 0
        self.table = self.changes(one) if shared and has("avx2") else None
        # vectors of factors in the order in which weights are multiplied by them
        self.brains = width == 64 and has("avx512bf16", "avx512bw")
        half = width // 2
        self.by = []
        for first in range(0, 64, half):
            rows = self.load(self.at(self.factors, 4 * first), Vector(FLOAT, half), 4)
            orders = (range(half // 2), range(half // 2, half)) if self.brains else (range(0, half, 2), range(1, half, 2))
            self.by.append([self.pick(rows, rows, list(order)) for order in orders])

    def changes(self, factor: Any) -> Any:
        """For each of the eight numbers of a doubling, again and again: what is added to its bits as bfloat16 if it is multiplied.
        The same for all doublings, since a power of 2 changes no rounding."""
        numbers = [1 + i % 8 / 8 for i in range(16)]
        words = self.b.bitcast(self.b.fmul(self.constant(FLOATS, numbers), factor), WORDS)
        halves = self.b.trunc(rounded(self, words), Vector(HALF, 16))
        halves = self.b.sub(halves, self.constant(halves.type, [bits_of(number) >> 16 for number in numbers]))
        return self.pick(halves, halves, [i % 16 for i in range(self.width // 2)])

    def changed(self, patterns: Any, numbers: Any) -> Any:
        """`numbers`, bfloat16 with these patterns, times the factor of all rows."""
        b, none = self.b, self.all(self.halves, 0)
        # rows that are all zeros, such as fill the last block up, have no bins but zero
        there = b.icmp_unsigned("!=", patterns, none)
        if self.width == 64:
            found = self.intrinsic("llvm.x86.avx512.permvar.hi.512", self.halves, self.table, patterns)
            return b.add(numbers, b.select(there, found, none))
        # each byte of a number says where a byte of its change lies
        places = b.mul(b.and_(patterns, self.all(self.halves, 7)), self.all(self.halves, 0x0202))
        places = b.bitcast(b.add(places, self.all(self.halves, 0x0100)), self.run)
        found = self.intrinsic("llvm.x86.avx2.pshuf.b", self.run, b.bitcast(self.table, self.run), places)
        return b.add(numbers, b.select(there, b.bitcast(found, self.halves), none))

    def form(self) -> tuple[int, tuple[int | str, ...]]:
        return DENSE[self.bits], (*range(MOST), SIDE, BELOW)

    def in_units(self, number: Any, run: int, part: int) -> Any:
        inverse = self.load(self.at(self.inverse, 4 * self.width * run), Vector(FLOAT, self.width), 4)
        return self.b.fmul(number, self.pick(inverse, inverse, self.rows(part)))

    def upper(self, parts: list[Any]) -> list[Any]:
        """The patterns of four vectors of words, as a pair, each with its sign in all higher bits."""
        return [self.b.ashr(pair, self.all(self.halves, BELOW_PATTERN - 16)) for pair in super().upper(parts)]

    def bins(self, bottom: Any, top: Any, outer: Any) -> tuple[Any, Any, Any, Any, Any]:
        b = self.b
        # Where ends have two signs, these are 2**11 apart, and no magnitude is so much more than another that MOST bits would do.
        span = b.sub(top, bottom)
        most = b.add(self.intrinsic(f"llvm.abs.v{self.width // 2}i16", self.halves, span, BIT(0)), self.all(self.halves, -1))
        return b.xor(bottom, top), span, most, bottom, top

    def write(self, kept: Any, dense: Any, block: Any) -> None:
        b, none = self.b, self.all(self.run, 0)
        sign, every = self.all(self.halves, -0x8000), self.all(self.halves, -1)
        for n, masks in enumerate(self.turned(kept)):
            found = []
            for i, own in enumerate(self.unpacked(masks, none)):
                lower, upper = (self.load(self.end_at(kept, n, i, k), self.halves, self.width) for k in (0, 1))
                sides = b.and_(own, self.all(self.halves, 3 << MOST))
                end = b.select(b.icmp_unsigned("!=", sides, self.all(self.halves, 0)), lower, upper)
                place = b.and_(own, self.all(self.halves, ZERO))
                pattern = b.sub(end, place)
                number = b.shl(pattern, self.all(self.halves, BELOW_PATTERN - 16))
                if self.table is not None:
                    number = self.changed(pattern, number)
                is_zero = b.icmp_unsigned("==", place, self.all(self.halves, ZERO))
                found.append(b.and_(number, b.select(is_zero, sign, every)))
            for part, numbers in enumerate(self.natural(found)):
                weights = numbers if self.table is not None else self.multiplied(numbers, *self.by[2 * n + part])
                self.store(weights, self.at(block, self.width * (2 * n + part)))

    def multiplied(self, numbers: Any, first: Any, second: Any) -> Any:
        """A vector of bfloat16, in the order of the rows, times their factors: rounded to the nearest, of two to the even one."""
        b = self.b
        if self.brains:
            count = self.width // 2
            products = []
            for at, factors in ((0, first), (count // 2, second)):
                part = self.pick(numbers, numbers, list(range(at, at + count // 2)))
                wide = b.shl(b.zext(part, self.words), self.all(self.words, 16))
                products.append(b.fmul(b.bitcast(wide, self.numbers), factors))
            # the one that comes first is the upper half
            kind = Vector(Brain(), count)
            made = self.intrinsic("llvm.x86.avx512bf16.cvtne2ps2bf16.512", kind, products[1], products[0])
            return b.bitcast(made, self.halves)
        words = b.bitcast(numbers, self.words)
        even, odd = b.shl(words, self.all(self.words, 16)), b.and_(words, self.all(self.words, -0x10000))
        even, odd = (
            self.nearest(b.fmul(b.bitcast(each, self.numbers), factors)) for each, factors in ((even, first), (odd, second))
        )
        joined = b.or_(b.lshr(even, self.all(self.words, 16)), b.and_(odd, self.all(self.words, -0x10000)))
        return b.bitcast(joined, self.halves)

    def nearest(self, numbers: Any) -> Any:
        """The bits of float32, of which the upper half is the nearest bfloat16: none is NaN."""
        b = self.b
        bits = b.bitcast(numbers, self.words)
        odd = b.and_(b.lshr(bits, self.all(self.words, 16)), self.all(self.words, 1))
        return b.add(bits, b.add(odd, self.all(self.words, 0x7FFF)))


def tile_reader(bits: int) -> Any:
    """Code for use in a kernel: makes `columns` columns of one tile at `out`, whose bits begin at bit `start` of the stream. All
    but these two and `step` are addresses; 0 as `step`: all rows have one factor."""

    @intrinsic
    def read_tile(
        typing: Any, codes: Any, scales: Any, dense: Any, stream: Any, start: Any, columns: Any, out: Any, factors: Any, step: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scales, dense, stream, start, columns, out, factors, step = arguments
            with builder.if_else(builder.icmp_signed("==", step, LONG(0))) as ways:
                for way, shared in zip(ways, (True, False), strict=True):
                    with way:
                        tile = EighthsTile(context, builder, bits, scales, widest(), factors, shared)
                        tile.read(codes, dense, stream, start, columns, out)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return read_tile


_read_2, _read_3, _read_4, _read_6, _read_8 = map(tile_reader, (2, 3, 4, 6, 8))


def _of_2(argument: Any) -> None:
    run = tile_run(argument)
    _read_2(run.codes, run.scales, run.dense, run.stream, run.start, run.columns, run.out, run.factors, run.step)


def _of_3(argument: Any) -> None:
    run = tile_run(argument)
    _read_3(run.codes, run.scales, run.dense, run.stream, run.start, run.columns, run.out, run.factors, run.step)


def _of_4(argument: Any) -> None:
    run = tile_run(argument)
    _read_4(run.codes, run.scales, run.dense, run.stream, run.start, run.columns, run.out, run.factors, run.step)


def _of_6(argument: Any) -> None:
    run = tile_run(argument)
    _read_6(run.codes, run.scales, run.dense, run.stream, run.start, run.columns, run.out, run.factors, run.step)


def _of_8(argument: Any) -> None:
    run = tile_run(argument)
    _read_8(run.codes, run.scales, run.dense, run.stream, run.start, run.columns, run.out, run.factors, run.step)


@cache
def reader(bits: int) -> int:
    """The address of machine code that reads a tile beside codes of so many bits; it is given that of a `TileRun`."""
    return machine_code({2: _of_2, 3: _of_3, 4: _of_4, 6: _of_6, 8: _of_8}[bits])
