"""Products of 1, 2 or 4 rows with columns of one block of exact weights, in bfloat16, as vector code.

One instruction (AVX-512 BF16) multiplies two columns of sixteen outputs and adds both products to float32 sums. Each
sum takes its columns in order, two by two, so a row's bits depend neither on how many rows run nor on how columns are
cut."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .instructions import has
from .vector import FLOAT, HALF, LONG, WORD, Code, Vector

FLOATS, HALVES = Vector(FLOAT, 16), Vector(HALF, 32)


class _Brain(ir.Type):  # type: ignore[misc]
    """bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


PAIRS = Vector(_Brain(), 32)
BRAINS = Vector(_Brain(), 16)


def has_bfdot() -> bool:
    """Whether numba compiles for a machine that multiplies bfloat16."""
    return has("avx512bf16", "avx512bw")


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

    def loop(self) -> None:
        b = self.b
        lines = [self.at(self.x, b.mul(self.stride, LONG(r))) for r in range(self.rows)]
        places = [[self.at(self.sums, 256 * r + 64 * v) for v in range(4)] for r in range(self.rows)]
        started = [[self.load(place, FLOATS, 64) for place in line] for line in places]
        before = b.block
        body, done = b.append_basic_block("columns"), b.append_basic_block("done")
        b.branch(body)
        b.position_at_end(body)
        column = b.phi(LONG)
        column.add_incoming(LONG(0), before)
        sums = [[b.phi(FLOATS) for _ in range(4)] for _ in range(self.rows)]
        here = self.at(self.weights, b.shl(column, LONG(7)))
        pairs = [self.load(self.at(here, 64 * v), PAIRS, 64) for v in range(4)]
        after = self.at(column, 2)
        for r in range(self.rows):
            x = b.bitcast(self.spread(self.load(self.at(lines[r], b.shl(column, LONG(1))), WORD, 2)), PAIRS)
            for v in range(4):
                total = self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, sums[r][v], x, pairs[v])
                sums[r][v].add_incoming(started[r][v], before)
                sums[r][v].add_incoming(total, b.block)
                started[r][v] = total
        column.add_incoming(after, b.block)
        b.cbranch(b.icmp_unsigned("<", after, self.columns), body, done)
        b.position_at_end(done)
        for r in range(self.rows):
            for v in range(4):
                self.store(started[r][v], places[r][v], 64)


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


@intrinsic
def _to_brain(typing: Any, source: Any, target: Any) -> Any:
    """64 float32 to the nearest bfloat16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder)
        source, target = arguments
        for v in range(4):
            brains = builder.fptrunc(code.load(code.at(source, 64 * v), FLOATS, 64), BRAINS)
            code.store(builder.bitcast(brains, Vector(HALF, 16)), code.at(target, 32 * v))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


pair_columns: Any = _pair_columns
to_brain: Any = _to_brain
