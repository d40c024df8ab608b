"""Products of a few rows with columns of one block of exact weights, in bfloat16, as vector code.

With AVX-512 BF16 one instruction multiplies two columns of sixteen outputs and adds both products to float32 sums, on ARM with
BF16 one does so for four outputs. Elsewhere both columns become float32, which only moves their bits, and are multiplied and added
one after the other. Where the processor has too few registers for that (AVX2), weights become float32 ahead, once for all rows
(unless these are one or two), and rows do so RUN columns at a time, for all outputs. Each sum takes its columns in order, so a
row's bits depend neither on how many rows run nor on how columns are cut. They do depend on the processor: only these instructions
take numbers below 2**-126 for 0."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .instructions import has
from .vector import FLOAT, HALF, LONG, WORD, Code, Vector

FLOATS, HALVES, WORDS = Vector(FLOAT, 16), Vector(HALF, 32), Vector(WORD, 16)
# columns of x that are float32 at once, where they have to be
RUN = 128


Lines = list[list[Any]]


class Brain(ir.Type):  # type: ignore[misc]
    """bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


PAIRS = Vector(Brain(), 32)


def has_bfdot() -> bool:
    """Whether numba compiles for a machine that multiplies bfloat16."""
    return has("avx512bf16", "avx512bw") or has_arm_bfdot()


def has_arm_bfdot() -> bool:
    """Whether that machine is one of ARM."""
    return has("neon", "bf16")


def ahead() -> bool:
    """Whether weights and rows become float32 before they are multiplied: that machine has 16 registers, too few to do so then."""
    return not (has_bfdot() or has("avx512f") or has("neon"))


# bytes of a column of 64 weights as `columns_dot` takes it, and the most rows at once
LAID = 256 if ahead() else 128
MOST = 6 if ahead() and has("avx2") else 4


def columns_dot(rows: int, laid: bool = True) -> Any:
    """Code for use in a kernel: sums += x @ weights.T for `rows` rows of x, bfloat16, `stride` bytes apart, over
    `columns` columns (even) of 64 weights at `weights`, which `lay_columns` put there. `sums`: float32 [rows, 64]. All but the
    numbers are addresses.

    laid: False: weights are bfloat16 as they are, which is faster for one row or two. Only where a machine does so `ahead`."""

    @intrinsic
    def add_columns(typing: Any, weights: Any, columns: Any, x: Any, stride: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            ColumnsDot(context, builder, rows, *arguments, laid=laid).loop()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return add_columns


class ColumnsDot(Code):
    """The code of one `add_columns`."""

    def __init__(self, context: Any, builder: Any, rows: int, *arguments: Any, laid: bool = True) -> None:
        super().__init__(context, builder)
        self.rows = rows
        self.laid = laid
        # bytes of a column of weights
        self.pitch = LAID if laid else 128
        self.weights, self.columns, self.x, self.stride, self.sums = arguments
        self.lines = [self.at(self.x, self.b.mul(self.stride, LONG(r))) for r in range(rows)]
        # whether rows and weights are float32 when they are multiplied
        self.in_floats = ahead()
        # addresses of the rows as float32, RUN columns at a time
        self.wide: list[Any] = []

    def loop(self) -> None:
        """Add all columns to all sums."""
        if not ahead():
            self.all_outputs(self.weights, self.columns)
            return
        room = self.room(FLOATS, self.rows * RUN // 16)
        self.wide = [self.at(room, 4 * RUN * r) for r in range(self.rows)]
        with self.over(self.columns, RUN) as (start, _):
            left = self.b.sub(self.columns, start)
            count = self.b.select(self.b.icmp_signed("<", left, LONG(RUN)), left, LONG(RUN))
            self.widen(start, count)
            self.all_outputs(self.at(self.weights, self.b.mul(start, LONG(self.pitch))), count)

    def widen(self, start: Any, count: Any) -> None:
        """Put `count` columns of the rows, from `start` on, where `wide` says, as float32."""
        b = self.b
        whole = b.and_(count, LONG(-16))
        for first, end, width in ((LONG(0), whole, 16), (whole, count, 2)):
            with self.over(end, width, first) as (column, _):
                for line, wide in zip(self.lines, self.wide, strict=True):
                    value = self.load(self.at(line, b.shl(b.add(start, column), LONG(1))), Vector(HALF, width))
                    self.store(widened(self, value), self.at(wide, b.shl(column, LONG(2))), 4)

    def all_outputs(self, weights: Any, columns: Any) -> None:
        """Add `columns` columns of `weights`: to all outputs at once where the processor's registers hold their sums, else to some
        after others."""
        at_once = 4 if has("avx512f") or self.rows == 1 else 2 if self.rows == 2 and ahead() else 1
        for first in range(0, 4, at_once):
            self.add(list(range(first, first + at_once)), weights, columns)

    def add(self, vectors: list[int], weights: Any, columns: Any) -> None:
        """Add columns to the sums of these `vectors` of 16 outputs."""
        b = self.b
        places = [[self.at(self.sums, 256 * r + 64 * v) for v in vectors] for r in range(self.rows)]
        started = [[self.load(place, FLOATS, 64) for place in line] for line in places]
        before = b.block
        body, done = b.append_basic_block("columns"), b.append_basic_block("done")
        b.branch(body)
        b.position_at_end(body)
        column = b.phi(LONG)
        column.add_incoming(LONG(0), before)
        sums = [[b.phi(FLOATS) for _ in vectors] for _ in range(self.rows)]
        here = self.at(weights, b.mul(column, LONG(self.pitch)))
        lines = [self.at(here, (64 if self.laid else 32) * v) for v in vectors]
        totals = self.float_step(column, lines, sums) if self.in_floats else self.paired_step(column, lines, sums)
        after = self.at(column, 2)
        for line, start, total in zip(sums, started, totals, strict=True):
            for phi, first, last in zip(line, start, total, strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(last, b.block)
        column.add_incoming(after, b.block)
        b.cbranch(b.icmp_unsigned("<", after, columns), body, done)
        b.position_at_end(done)
        for line, total in zip(places, totals, strict=True):
            for place, value in zip(line, total, strict=True):
                self.store(value, place, 64)

    def float_step(self, column: Any, weights: list[Any], sums: Lines) -> Lines:
        """The sums and the products of two columns as float32: of all rows by the first, then by the second."""
        start = self.b.shl(column, LONG(2))
        for second in (0, 1):
            values = [self.weights_at(self.at(line, self.pitch * second)) for line in weights]
            for r, line in enumerate(sums):
                x = self.spread(self.load(self.at(self.wide[r], self.at(start, 4 * second)), FLOAT, 4))
                sums = [*sums[:r], [self.fused(t, x, v) for t, v in zip(line, values, strict=True)], *sums[r + 1 :]]
        return sums

    def weights_at(self, address: Any) -> Any:
        """16 weights as float32."""
        return self.load(address, FLOATS, 64) if self.laid else widened(self, self.load(address, Vector(HALF, 16)))

    def paired_step(self, column: Any, weights: list[Any], sums: Lines) -> Lines:
        """The sums and the products of two columns that lie as pairs."""
        pairs = [self.parted(self.load(line, WORDS, 64)) for line in weights]
        totals = []
        for own, line in zip(self.lines, sums, strict=True):
            x = self.parted(self.spread(self.load(self.at(own, self.b.shl(column, LONG(1))), WORD, 2)))
            totals.append([self.added(t, x, v) for t, v in zip(line, pairs, strict=True)])
        return totals

    def parted(self, pairs: Any) -> list[Any]:
        """What `added` takes of 16 pairs of bfloat16: the pairs, or the first and the second of each as float32."""
        if has_bfdot():
            return [self.b.bitcast(pairs, PAIRS)]
        first, second = self.b.shl(pairs, self.all(WORDS, 16)), self.b.and_(pairs, self.all(WORDS, 0xFFFF0000))
        return [self.b.bitcast(first, FLOATS), self.b.bitcast(second, FLOATS)]

    def added(self, total: Any, x: list[Any], weights: list[Any]) -> Any:
        """`total` and the products of two columns."""
        if has_arm_bfdot():
            return self.four_fours(total, x[0], weights[0])
        if has_bfdot():
            return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, *x, *weights)
        for own, weight in zip(x, weights, strict=True):
            total = self.fused(total, own, weight)
        return total

    def fused(self, total: Any, x: Any, weight: Any) -> Any:
        """total + x * weight, rounded once where the processor can."""
        if has("fma") or has("neon"):
            return self.intrinsic("llvm.fma.v16f32", FLOATS, x, weight, total)
        return self.b.fadd(total, self.b.fmul(x, weight))

    def four_fours(self, total: Any, x: Any, weights: Any) -> Any:
        """`added` by ARM's instruction, which takes four outputs."""
        quarters = []
        for first in range(0, 16, 4):
            sums = self.pick(total, total, list(range(first, first + 4)))
            own, numbers = (self.pick(v, v, list(range(2 * first, 2 * first + 8))) for v in (x, weights))
            quarters.append(self.intrinsic("llvm.aarch64.neon.bfdot.v4f32.v8bf16", sums.type, sums, own, numbers))
        halves = [self.pick(a, b, list(range(8))) for a, b in (quarters[:2], quarters[2:])]
        return self.pick(halves[0], halves[1], list(range(16)))


def widened(code: Code, values: Any) -> Any:
    """Numbers with the bits `values`, bfloat16, as float32."""
    words = Vector(WORD, values.type.count)
    return code.b.bitcast(code.b.shl(code.b.zext(values, words), code.all(words, 16)), Vector(FLOAT, words.count))


@intrinsic
def _lay_columns(typing: Any, source: Any, target: Any) -> Any:
    """Two columns of 64 weights as `columns_dot` takes them, LAID bytes each: side by side, 16 pairs for outputs 0 to 15, 16 for
    the next, and so on; or one after the other as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder)
        source, target = arguments
        if not ahead():
            columns = [code.load(code.at(source, 64 * half), HALVES) for half in range(4)]
            for v in range(4):
                order = [32 * t + v % 2 * 16 + j for j in range(16) for t in range(2)]
                code.store(code.pick(columns[v // 2], columns[2 + v // 2], order), code.at(target, 64 * v), 64)
        else:
            for v in range(8):
                code.store(widened(code, code.load(code.at(source, 32 * v), Vector(HALF, 16))), code.at(target, 64 * v), 64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def rounded(code: Code, words: Any) -> Any:
    """The bits of the nearest bfloat16 of 16 float32 with the bits `words`; of two, the even one. NaN stays NaN."""
    b = code.b
    upper = b.lshr(words, code.all(WORDS, 16))
    odd = b.and_(upper, code.all(WORDS, 1))
    nearest = b.lshr(b.add(words, b.add(odd, code.all(WORDS, 0x7FFF))), code.all(WORDS, 16))
    magnitude = b.and_(words, code.all(WORDS, 0x7FFFFFFF))
    nan = b.icmp_unsigned(">", magnitude, code.all(WORDS, 0x7F800000))
    return b.select(nan, b.or_(upper, code.all(WORDS, 0x40)), nearest)


@intrinsic
def _to_brain(typing: Any, source: Any, target: Any) -> Any:
    """64 float32 to the nearest bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder)
        source, target = arguments
        for v in range(4):
            words = builder.bitcast(code.load(code.at(source, 64 * v), FLOATS, 64), WORDS)
            code.store(builder.trunc(rounded(code, words), Vector(HALF, 16)), code.at(target, 32 * v))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


lay_columns: Any = _lay_columns
to_brain: Any = _to_brain
