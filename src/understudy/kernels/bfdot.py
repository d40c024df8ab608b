"""Products of 1, 2 or 4 rows with columns of one block of exact weights, in bfloat16, as vector code.

With AVX-512 BF16 one instruction multiplies two columns of sixteen outputs and adds both products to float32 sums, on ARM with BF16
one does so for four outputs. Elsewhere both columns become float32, which only moves their bits, and are multiplied and added one
after the other. Each sum takes its columns in order, so a row's bits depend neither on how many rows run nor on how columns are
cut. They do depend on the processor: only these instructions take numbers below 2**-126 for 0."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .instructions import has
from .vector import FLOAT, HALF, LONG, WORD, Code, Vector

FLOATS, HALVES, WORDS = Vector(FLOAT, 16), Vector(HALF, 32), Vector(WORD, 16)


class _Brain(ir.Type):  # type: ignore[misc]
    """bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


PAIRS = Vector(_Brain(), 32)


def has_bfdot() -> bool:
    """Whether numba compiles for a machine that multiplies bfloat16."""
    return has("avx512bf16", "avx512bw") or has_arm_bfdot()


def has_arm_bfdot() -> bool:
    """Whether that machine is one of ARM."""
    return has("neon", "bf16")


def columns_dot(rows: int) -> Any:
    """Code for use in a kernel: sums += x @ weights.T for `rows` rows of x, bfloat16, `stride` bytes apart, over
    `columns` columns (even) of 64 weights at `weights`, paired. `sums`: float32 [rows, 64]. All but the numbers are
    addresses."""

    @intrinsic
    def add_columns(typing: Any, weights: Any, columns: Any, x: Any, stride: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _ColumnsDot(context, builder, rows, *arguments).loop()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return add_columns


class _ColumnsDot(Code):
    """The code of one `add_columns`."""

    def __init__(self, context: Any, builder: Any, rows: int, *arguments: Any) -> None:
        super().__init__(context, builder)
        self.rows = rows
        self.weights, self.columns, self.x, self.stride, self.sums = arguments
        self.lines = [self.at(self.x, self.b.mul(self.stride, LONG(r))) for r in range(rows)]

    def loop(self) -> None:
        """Add all columns to all sums: at once where the processor's registers hold these, else 16 outputs at a time."""
        whole = [0, 1, 2, 3]
        for vectors in [whole] if has("avx512f") or self.rows == 1 else [[v] for v in whole]:
            self.add(vectors)

    def add(self, vectors: list[int]) -> None:
        """Add all columns to the sums of these `vectors` of 16 outputs."""
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
        here = self.at(self.weights, b.shl(column, LONG(7)))
        pairs = [self.parted(self.load(self.at(here, 64 * v), WORDS, 64)) for v in vectors]
        after = self.at(column, 2)
        for r in range(self.rows):
            x = self.parted(self.spread(self.load(self.at(self.lines[r], b.shl(column, LONG(1))), WORD, 2)))
            for v in range(len(vectors)):
                total = self.added(sums[r][v], x, pairs[v])
                sums[r][v].add_incoming(started[r][v], before)
                sums[r][v].add_incoming(total, b.block)
                started[r][v] = total
        column.add_incoming(after, b.block)
        b.cbranch(b.icmp_unsigned("<", after, self.columns), body, done)
        b.position_at_end(done)
        for line, totals in zip(places, started, strict=True):
            for place, total in zip(line, totals, strict=True):
                self.store(total, place, 64)

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
            if has("fma") or has("neon"):
                total = self.intrinsic("llvm.fma.v16f32", FLOATS, own, weight, total)
            else:
                total = self.b.fadd(total, self.b.fmul(own, weight))
        return total

    def four_fours(self, total: Any, x: Any, weights: Any) -> Any:
        """`added` by ARM's instruction, which takes four outputs."""
        quarters = []
        for first in range(0, 16, 4):
            sums = self.pick(total, total, list(range(first, first + 4)))
            own, numbers = (self.pick(v, v, list(range(2 * first, 2 * first + 8))) for v in (x, weights))
            quarters.append(self.intrinsic("llvm.aarch64.neon.bfdot.v4f32.v8bf16", sums.type, sums, own, numbers))
        halves = [self.pick(a, b, list(range(8))) for a, b in (quarters[:2], quarters[2:])]
        return self.pick(halves[0], halves[1], list(range(16)))


@intrinsic
def _pair_columns(typing: Any, source: Any, target: Any) -> Any:
    """Two columns of 64 weights side by side: 16 pairs for outputs 0 to 15, 16 for the next, and so on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder)
        source, target = arguments
        columns = [code.load(code.at(source, 64 * half), HALVES) for half in range(4)]
        for v in range(4):
            order = [32 * t + v % 2 * 16 + j for j in range(16) for t in range(2)]
            code.store(code.pick(columns[v // 2], columns[2 + v // 2], order), code.at(target, 64 * v), 64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _rounded(code: Code, words: Any) -> Any:
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
            code.store(builder.trunc(_rounded(code, words), Vector(HALF, 16)), code.at(target, 32 * v))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


pair_columns: Any = _pair_columns
to_brain: Any = _to_brain
