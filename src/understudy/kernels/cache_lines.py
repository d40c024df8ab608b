"""Products of queries with keys as they lie in the cache, and sums of its values by weights: for a draft's attention.

A line of the cache is a key or a value: bfloat16, float32, or a byte for each number and their step behind them (`small_keys`).
Arguments are addresses, counts and distances in bytes. Each sum has one order, whatever is done beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np import numpy_support

from .compiled import compiled, float_of, part
from .numbers import step_of
from .team import float32_at, uint8_at, uint16_at
from .vector import BYTE, FLOAT, FLOATS, LONG, WORD, WORDS, Code, Vector

# rows of queries, or of sums, that go through the lines together
TOGETHER = 4
carray: Any = numpy_support.carray


class LineCode(Code):
    """Code for lines of numbers of `itemsize` bytes and `rows` rows of what is multiplied with them."""

    # of the numbers that are multiplied at once: 2 to the power of it
    power = 4

    def __init__(self, context: Any, builder: Any, itemsize: int, rows: int, vectors: int = 0) -> None:
        super().__init__(context, builder)
        self.itemsize, self.rows, self.vectors = itemsize, rows, vectors

    def numbers(self, address: Any) -> Any:
        """The 16 numbers, or codes, at `address`."""
        if self.itemsize == 1:
            return self.b.sitofp(self.b.sext(self.load(address, Vector(BYTE, 16)), WORDS), FLOATS)
        return self.floats(address, self.itemsize)

    def worth(self, number: Any, step: Any) -> Any:
        """`number` of a line whose step is at address `step`."""
        return self.b.fmul(number, self.load(step, FLOAT)) if self.itemsize == 1 else number

    def each(self, first: Any, apart: Any) -> list[Any]:
        """The addresses of all rows."""
        return [self.at(first, self.b.mul(apart, LONG(r))) for r in range(self.rows)]

    def line(self, lines: Any, i: Any) -> Any:
        """The address of the i-th line."""
        return self.load(self.at(lines, self.b.shl(i, LONG(3))), LONG, 8)

    def score(self, lines: Any, count: Any, size: Any, x: Any, apart: Any, scale: Any, out: Any, width: Any) -> None:
        """Products of queries at `x` and keys, times `scale`, at `out`: of the first numbers, as many as are multiplied at once."""
        b = self.b
        queries, places = self.each(x, apart), self.each(out, width)

        def of_line(p: Any, _: Sequence[Any]) -> Sequence[Any]:
            line = self.line(lines, p)

            def of_some(v: Any, sums: Sequence[Any]) -> Sequence[Any]:
                return self.multiplied(line, queries, v, sums)

            sums = self.repeated(b.lshr(size, LONG(self.power)), [self.all(FLOATS, 0.0) for _ in queries], of_some)
            factor = self.spread(self.worth(scale, self.at(line, size)), len(places))
            totals = b.fmul(self.folded_each(sums, b.fadd), factor)
            for r, place in enumerate(places):
                self.store(b.extract_element(totals, WORD(r)), self.at(place, b.shl(p, LONG(2))), 4)
            return []

        self.repeated(count, [], of_line)

    def multiplied(self, line: Any, queries: Sequence[Any], v: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """`sums` with the products of the v-th numbers of a line and of queries that are multiplied at once."""
        key, offset = self.numbers(self.at(line, self.b.mul(v, LONG(16 * self.itemsize)))), self.b.shl(v, LONG(6))
        own = [self.load(self.at(query, offset), FLOATS, 4) for query in queries]
        return [self.fused(numbers, key, total) for numbers, total in zip(own, sums, strict=True)]

    def weigh(self, lines: Any, count: Any, size: Any, column: Any, x: Any, apart: Any, out: Any, width: Any) -> None:
        """Values by weights at `x` are added at `out`: `vectors` times 16 numbers from `column` on."""
        b = self.b
        weights, vectors = self.each(x, apart), range(self.vectors)
        first = b.mul(column, LONG(self.itemsize))
        places = [self.at(row, self.at(b.shl(column, LONG(2)), 64 * v)) for row in self.each(out, width) for v in vectors]

        def of_line(p: Any, sums: Sequence[Any]) -> Sequence[Any]:
            line, offset = self.line(lines, p), b.shl(p, LONG(2))
            value = [self.numbers(self.at(self.at(line, first), 16 * self.itemsize * v)) for v in vectors]
            own = [self.worth(self.load(self.at(row, offset), FLOAT, 4), self.at(line, size)) for row in weights]
            spread = [weight for weight in map(self.spread, own) for _ in vectors]
            return [self.fused(w, value[i % len(vectors)], total) for i, (w, total) in enumerate(zip(spread, sums, strict=True))]

        sums = self.repeated(count, [self.load(place, FLOATS, 4) for place in places], of_line)
        for place, total in zip(places, sums, strict=True):
            self.store(total, place, 4)


def _scorer(kind: type[LineCode], itemsize: int, rows: int) -> Any:
    """For kernels: `LineCode.score` of this `kind` of code."""

    @intrinsic
    def scores(typing: Any, lines: Any, count: Any, size: Any, x: Any, apart: Any, scale: Any, out: Any, width: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind(context, builder, itemsize, rows).score(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5, types.float32, types.int64, types.int64), generate

    return scores


def _weigher(itemsize: int, rows: int, vectors: int) -> Any:
    """For kernels: `LineCode.weigh`."""

    @intrinsic
    def weighs(typing: Any, lines: Any, count: Any, size: Any, column: Any, x: Any, apart: Any, out: Any, width: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            LineCode(context, builder, itemsize, rows, vectors).weigh(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return weighs


def score_of(itemsize: int, kind: type[LineCode] = LineCode) -> Any:
    """For kernels: `score` of lines of numbers of so many bytes, by this `kind` of code, which says what queries are of."""
    one, four = (_scorer(kind, itemsize, rows) for rows in (1, TOGETHER))

    def score(lines: Any, queries: Any, scaling: Any, out: Any) -> None:
        (rows, size), count, table = queries.shape, lines.shape[0], lines.ctypes.data
        apart, width, r = queries.strides[0], out.strides[0], 0
        while r < rows:
            x, place = queries[r].ctypes.data, out[r].ctypes.data
            if rows - r >= TOGETHER:
                four(table, count, size, x, apart, scaling, place, width)
                r += TOGETHER
            else:
                one(table, count, size, x, apart, scaling, place, width)
                r += 1

    return part(score, itemsize, kind.__name__)


def _columns_of(itemsize: int, together: int) -> Any:
    """For kernels: `LineCode.weigh` for all columns of `together` rows, but for the last, which are no sixteen."""
    narrow, wide = _weigher(itemsize, together, 1), _weigher(itemsize, together, 4)

    def columns(lines: int, count: int, size: int, x: int, apart: int, out: int, width: int) -> None:
        c = 0
        while c + 64 <= size:
            wide(lines, count, size, c, x, apart, out, width)
            c += 64
        while c + 16 <= size:
            narrow(lines, count, size, c, x, apart, out, width)
            c += 16

    return part(columns, itemsize, together)


def _weigh_of(itemsize: int) -> Any:
    """For kernels: `weigh` of lines of numbers of so many bytes."""
    one, four = _columns_of(itemsize, 1), _columns_of(itemsize, TOGETHER)

    def weigh(lines: Any, weights: Any, sums: Any) -> None:
        (rows, size), count, table = sums.shape, lines.shape[0], lines.ctypes.data
        apart, width, r = weights.strides[0], sums.strides[0], 0
        while r < rows:
            x, place = weights[r].ctypes.data, sums[r].ctypes.data
            if rows - r >= TOGETHER:
                four(table, count, size, x, apart, place, width)
                r += TOGETHER
            else:
                one(table, count, size, x, apart, place, width)
                r += 1

    return part(weigh, itemsize)


_score_codes, _score_halves, _score_floats = map(score_of, (1, 2, 4))
_weigh_codes, _weigh_halves, _weigh_floats = map(_weigh_of, (1, 2, 4))


@compiled
def _number(line: int, itemsize: int, size: int, c: int) -> Any:
    """Number c of a line."""
    if itemsize == 2:
        return float_of(np.int64(uint16_at(line)[c]) << 16)
    if itemsize == 4:
        return float32_at(line)[c]
    codes = carray(uint8_at(line), size + 4)
    return np.float32(np.int8(codes[c])) * step_of(codes, size)


@compiled
def score(lines: Any, itemsize: int, queries: Any, scaling: Any, out: Any) -> None:
    """out[r, p] = scaled product of row r of `queries` [rows, size] and the line at address lines[p].

    lines: int64 [n], of numbers of `itemsize` bytes; queries and out [rows, n] float32."""
    if itemsize == 2:
        _score_halves(lines, queries, scaling, out)
    elif itemsize == 1:
        _score_codes(lines, queries, scaling, out)
    else:
        _score_floats(lines, queries, scaling, out)
    rows, size = queries.shape
    for c in range(size - size % 16, size):
        for p in range(lines.shape[0]):
            number = _number(lines[p], itemsize, size, c) * scaling
            for r in range(rows):
                out[r, p] += queries[r, c] * number


@compiled
def weigh(lines: Any, itemsize: int, weights: Any, sums: Any) -> None:
    """sums[r] += weights[r, p] times the line at address lines[p], one p after the other: `sums` [rows, size]; see `score`."""
    if itemsize == 2:
        _weigh_halves(lines, weights, sums)
    elif itemsize == 1:
        _weigh_codes(lines, weights, sums)
    else:
        _weigh_floats(lines, weights, sums)
    rows, size = sums.shape
    for p in range(lines.shape[0]):
        for c in range(size - size % 16, size):
            number = _number(lines[p], itemsize, size, c)
            for r in range(rows):
                sums[r, c] += weights[r, p] * number
