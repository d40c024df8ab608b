"""Integer dot products of a few rows with a group of columns of one block of codes, as vector code.

Codes lie as `kernels.pack` says; activations are int8. With AVX-512 VNNI four columns of sixteen rows are one
instruction; elsewhere the same sums are made in float32, which holds them exactly (they stay below 2**24), so every
machine gives the same bits. Codes of 2 and 3 bits are multiplied where they stand in their bytes, 4, 16 or 64 times
too large, and the sums divided."""

from collections.abc import Callable
from itertools import chain
from typing import Any

from numba import types
from numba.extending import intrinsic

from .codes import Codes
from .instructions import has
from .vector import BYTE, FLOAT, LONG, WORD, Vector

WORDS, FLOATS = Vector(WORD, 16), Vector(FLOAT, 16)
RUN = Vector(BYTE, 64)
# the code that stands for the group's zero
CENTRE = {2: 2, 3: 4, 4: 8, 8: 128}
# the bit of its byte at which `four_columns` leaves a code: of rows 0 to 15, 16 to 31, and so on
PLACES = {2: (0, 2, 4, 6), 3: (0, 2, 4, 4), 4: (0, 0, 0, 0), 8: (0, 0, 0, 0)}
# for each row of x, four vectors of 16 sums
Lines = list[list[Any]]


def has_vnni() -> bool:
    """Whether numba compiles for a machine that multiplies bytes four at a time."""
    return has("avx512vnni", "avx512bw")


def group_dot(bits: int, rows: int, vnni: bool | None = None) -> Any:
    """Code for use in a kernel: add to `rows` times 64 float32 at `out` the products of `rows` rows of int8 at `x`
    (rows `stride` bytes apart) with `columns` columns (a multiple of 4) of the block's codes.

    `scales` holds a word a row, (scale, zero) in bfloat16; `steps`, for each row of x, the step of its int8 and the
    step times their sum, in float32. All but `columns` and `stride` are addresses."""

    @intrinsic
    def add_group(typing: Any, codes: Any, x: Any, stride: Any, columns: Any, scales: Any, steps: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            fast = has_vnni() if vnni is None else vnni
            write = _GroupDot(context, builder, bits, rows, *arguments)
            write.epilogue(write.sums(write.vnni_step, WORDS, 4) if fast else write.sums(write.plain_step, FLOATS, 1))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return add_group


class _GroupDot(Codes):
    """The code of one `add_group`."""

    def __init__(self, context: Any, builder: Any, bits: int, rows: int, *arguments: Any) -> None:
        super().__init__(context, builder, bits)
        self.rows = rows
        self.codes, self.x, self.stride, self.columns, self.scales, self.steps, self.out = arguments

    def row(self, r: int, offset: Any) -> Any:
        """The address `offset` bytes into row r of x."""
        return self.at(self.at(self.x, self.b.mul(self.stride, LONG(r))), offset)

    def sums(self, step: Callable[[Any, Lines], Lines], kind: Any, width: int) -> Lines:
        """The loop over columns, `width` at a time. Sums end as `FLOATS`."""
        before = self.b.block
        loop, done = self.b.append_basic_block("columns"), self.b.append_basic_block("done")
        self.b.branch(loop)
        self.b.position_at_end(loop)
        column = self.b.phi(LONG)
        column.add_incoming(LONG(0), before)
        sums = [[self.b.phi(kind) for _ in range(4)] for _ in range(self.rows)]
        following = step(column, sums)
        last = self.b.block
        for phi, value in zip(chain(*sums), chain(*following), strict=True):
            phi.add_incoming(self.all(kind, 0), before)
            phi.add_incoming(value, last)
        after = self.at(column, width)
        column.add_incoming(after, last)
        self.b.cbranch(self.b.icmp_unsigned("<", after, self.columns), loop, done)
        self.b.position_at_end(done)
        return [self.divided(line) for line in following] if kind is WORDS else following

    def divided(self, line: list[Any]) -> list[Any]:
        """Sums of codes in their places as sums of codes, in float32."""
        places = zip(line, PLACES[self.bits], strict=True)
        return [self.b.sitofp(self.b.ashr(v, self.all(WORDS, place)) if place else v, FLOATS) for v, place in places]

    def vnni_step(self, column: Any, sums: Lines) -> Lines:
        """The sums after four more columns, as integers of 32 bits."""
        quads = self.four_columns(self.at(self.codes, self.b.mul(column, LONG(8 * self.bits))))
        following = []
        for r, line in enumerate(sums):
            x = self.spread(self.load(self.row(r, column), WORD))
            dot = "llvm.x86.avx512.vpdpbusd.512"
            added = [self.intrinsic(dot, WORDS, total, quad, x) for total, quad in zip(line, quads, strict=True)]
            following.append(added)
        return following

    def four_columns(self, address: Any) -> list[Any]:
        """The codes of four columns, in their places: word j of vector v holds those of row 16 v + j, a byte each."""
        read = {2: self.twos, 3: self.threes, 4: self.fours, 8: self.eights}[self.bits]
        return [self.b.bitcast(v, WORDS) for v in read(address)]

    def eights(self, address: Any) -> list[Any]:
        runs = [self.load(self.at(address, 64 * t), RUN) for t in range(4)]
        return [self.turned(runs, 16 * v) for v in range(4)]

    def fours(self, address: Any) -> list[Any]:
        low, high = self.load(address, RUN), self.load(self.at(address, 64), RUN)
        turned = [self.pick(low, high, [32 * t + first + j for j in range(16) for t in range(4)]) for first in (0, 16)]
        return [self.masked(v, 15) for v in turned] + [self.b.lshr(v, self.all(RUN, 4)) for v in turned]

    def twos(self, address: Any) -> list[Any]:
        run = self.load(address, RUN)
        turned = self.pick(run, run, [16 * t + j for j in range(16) for t in range(4)])
        return [self.masked(turned, 3 << place) for place in PLACES[2]]

    def threes(self, address: Any) -> list[Any]:
        """Third bits are moved above the low two where those stand; the low two of the last 16 rows move down to make
        room. What a shift moves into the next byte is masked."""
        b = self.b
        runs = self.load(address, RUN), self.load(self.at(address, 32), RUN)
        # where each of the four columns begins in both runs, laid one after the other
        starts = [24 * t + 32 * (t > 1) for t in range(4)]
        low = self.pick(*runs, [starts[t] + j for j in range(16) for t in range(4)])
        third = b.bitcast(self.pick(*runs, [starts[t] + 16 + j % 8 for j in range(16) for t in range(4)]), WORDS)
        up = b.shl(third, self.constant(WORDS, [2 - j // 8 for j in range(16)]))
        down = b.lshr(third, self.constant(WORDS, [j // 8 for j in range(16)]))
        lows = [low, low, low, b.bitcast(b.lshr(b.bitcast(low, WORDS), self.all(WORDS, 2)), RUN)]
        codes = []
        for v, place in enumerate(PLACES[3]):
            high = b.bitcast(up if v < 3 else down, RUN)
            codes.append(b.or_(self.masked(lows[v], 3 << place), self.masked(high, 4 << place)))
        return codes

    def masked(self, value: Any, bits: int) -> Any:
        return self.b.and_(value, self.all(RUN, bits - (bits > 127) * 256))

    def turned(self, runs: list[Any], first: int) -> Any:
        """16 rows of four runs of 64 bytes, the four bytes of a row side by side."""
        pairs = [
            self.pick(a, b, [64 * t + first + j for j in range(16) for t in range(2)]) for a, b in (runs[:2], runs[2:])
        ]
        return self.pick(
            pairs[0], pairs[1], [32 * t + 2 * j + u for j in range(16) for t in range(2) for u in range(2)]
        )

    def plain_step(self, column: Any, sums: Lines) -> Lines:
        """The sums after one more column, in float32."""
        codes = self.column(self.at(self.codes, self.b.mul(column, LONG(8 * self.bits))))
        values = [self.b.uitofp(v, FLOATS) for v in codes]
        following = []
        for r, line in enumerate(sums):
            x = self.spread(self.b.sitofp(self.load(self.row(r, column), BYTE), FLOAT))
            following.append([self.b.fadd(t, self.b.fmul(v, x)) for t, v in zip(line, values, strict=True)])
        return following

    def epilogue(self, sums: Lines) -> None:
        """out += sum * step * scale + (zero - centre * scale) * step * (sum of the int8)."""
        b = self.b
        for v in range(4):
            word = self.load(self.at(self.scales, 64 * v), WORDS, 4)
            scale = b.bitcast(b.shl(word, self.all(WORDS, 16)), FLOATS)
            zero = b.bitcast(b.and_(word, self.all(WORDS, -65536)), FLOATS)
            offset = b.fsub(zero, b.fmul(self.all(FLOATS, float(CENTRE[self.bits])), scale))
            for r in range(self.rows):
                step = self.spread(self.load(self.at(self.steps, 8 * r), FLOAT, 4))
                total = self.spread(self.load(self.at(self.steps, 8 * r + 4), FLOAT, 4))
                place = self.at(self.out, 256 * r + 64 * v)
                y = b.fadd(self.load(place, FLOATS, 4), b.fmul(b.fmul(sums[r][v], step), scale))
                self.store(b.fadd(y, b.fmul(offset, total)), place, 4)
