"""Sums of weighted rows, and products of two rows, as vector code: every sum in one order, whatever else is done beside it.

What recurrent layers (`recurrence_cpu.py`) and the exact attention (`attention_cpu.py`) consist of. Numbers are float32; arguments
are addresses and counts."""

from collections.abc import Callable, Sequence
from typing import Any

from numba import types
from numba.extending import intrinsic

from .compiled import contracted, part
from .instructions import has
from .team import float32_at, int64_at
from .vector import FLOAT, FLOATS, LONG, Code

LANES = 16
# columns that `combine_rows` combines
BLOCK = 64


def _adder(outputs: int, vectors: int) -> Any:
    """Code for use in a kernel: `add_rows` for this number of outputs, of 16 * `vectors` columns."""

    @intrinsic
    def add(typing: Any, rows: Any, steps: Any, count: Any, stride: Any, weights: Any, apart: Any, out: Any, width: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Adding(context, builder, outputs, vectors).all_rows(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return add


class _Adding(Code):
    """The code of one `add`, or of one `combine`, whose sums begin as zeros."""

    def __init__(self, context: Any, builder: Any, outputs: int, vectors: int) -> None:
        super().__init__(context, builder)
        self.outputs, self.vectors = outputs, vectors

    def all_rows(self, rows: Any, steps: Any, count: Any, stride: Any, weights: Any, apart: Any, out: Any, width: Any) -> None:
        """The sums stay in registers from the first row to the last."""
        b = self.b
        places = self._places(out, width)

        def row(i: Any) -> Any:
            return self.at(rows, b.mul(self.load(self.at(steps, b.shl(i, LONG(3))), LONG, 8), stride))

        self._summed(row, count, weights, apart, [self.load(place, FLOATS, 4) for place in places], places)

    def of_block(self, rows: Any, count: Any, weights: Any, apart: Any, out: Any, width: Any) -> None:
        """Rows of BLOCK numbers lie side by side."""
        size = LONG(4 * BLOCK)
        places = self._places(out, width)
        zeros = [self.all(FLOATS, 0.0) for _ in places]
        self._summed(lambda i: self.at(rows, self.b.mul(i, size)), count, weights, apart, zeros, places)

    def _places(self, out: Any, width: Any) -> list[Any]:
        lines = [self.at(out, self.b.mul(width, LONG(4 * o))) for o in range(self.outputs)]
        return [self.at(line, 64 * v) for line in lines for v in range(self.vectors)]

    def _summed(
        self, row: Callable[[Any], Any], count: Any, weights: Any, apart: Any, begin: Sequence[Any], places: Sequence[Any]
    ) -> None:  # fmt: skip
        b = self.b
        factors = [self.at(weights, b.mul(apart, LONG(4 * o))) for o in range(self.outputs)]

        def of_row(i: Any, sums: Sequence[Any]) -> Sequence[Any]:
            here = row(i)
            numbers = [self.load(self.at(here, 64 * v), FLOATS, 4) for v in range(self.vectors)]
            own = [self.spread(self.load(self.at(factor, b.shl(i, LONG(2))), FLOAT, 4)) for factor in factors]
            pairs = [(weight, each) for weight in own for each in numbers]
            return [self.fused(*pair, total) for pair, total in zip(pairs, sums, strict=True)]

        for place, total in zip(places, self.repeated(count, begin, of_row), strict=True):
            self.store(total, place, 4)


def _adder_of(outputs: int) -> Any:
    """For kernels: `add_rows` for this number of outputs, but for the last columns, which are no sixteen."""
    # as many columns at once as registers hold the sums of: half of what others have would be kept in memory
    columns = 64 if has("avx512f") else 64 // outputs
    narrow, wide = _adder(outputs, 1), _adder(outputs, columns // LANES)

    def add(rows: int, steps: int, count: int, stride: int, weights: int, apart: int, out: int, width: int) -> None:
        c = 0
        while c + columns <= width:
            wide(rows + 4 * c, steps, count, stride, weights, apart, out + 4 * c, width)
            c += columns
        while c + LANES <= width:
            narrow(rows + 4 * c, steps, count, stride, weights, apart, out + 4 * c, width)
            c += LANES

    return part(add, outputs)


_one, _two, _four = map(_adder_of, (1, 2, 4))


@contracted
def add_rows(
    rows: int, steps: int, count: int, stride: int, weights: int, outputs: int, apart: int, out: int, width: int
) -> None:
    """out[o] += sum over i < count, in order, of weights[o][i] * row i, for `outputs` lines of `width` numbers side by side.

    Row i begins steps[i] * stride bytes after `rows` (steps: int64). The weights of an output lie `apart` numbers after those of
    the one before. A number's bits depend on its own column and on the width alone."""
    o = 0
    while o < outputs:
        several = 4 if outputs - o >= 4 else 2 if outputs - o >= 2 else 1
        own, line = weights + 4 * o * apart, out + 4 * o * width
        if several == 4:
            _four(rows, steps, count, stride, own, apart, line, width)
        elif several == 2:
            _two(rows, steps, count, stride, own, apart, line, width)
        else:
            _one(rows, steps, count, stride, own, apart, line, width)
        o += several
    for o in range(outputs):
        for rest in range(width - width % 16, width):
            total = float32_at(out)[o * width + rest]
            for i in range(count):
                row = rows + int64_at(steps)[i] * stride
                total += float32_at(weights)[o * apart + i] * float32_at(row)[rest]
            float32_at(out)[o * width + rest] = total


def _combiner(outputs: int) -> Any:
    """For kernels: `combine_rows` for this number of outputs."""
    # as many columns at once as registers hold the sums of
    vectors = BLOCK // LANES if has("avx512f") else BLOCK // LANES // outputs

    @intrinsic
    def combine(typing: Any, rows: Any, count: Any, weights: Any, apart: Any, out: Any, width: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, count, weights, apart, out, width = arguments
            for first in range(0, BLOCK // LANES, vectors):
                code = _Adding(context, builder, outputs, vectors)
                code.of_block(code.at(rows, 64 * first), count, weights, apart, code.at(out, 64 * first), width)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return combine


_combine_one, _combine_two, _combine_four = map(_combiner, (1, 2, 4))


@contracted
def combine_rows(rows: int, count: int, weights: int, outputs: int, apart: int, out: int, width: int) -> None:
    """out[o] = sum over i < count, in order, of weights[o][i] * row i, of 64 columns, for `outputs` lines `width` numbers apart.

    Rows lie side by side. The weights of an output lie `apart` numbers after those of the one before. A number's bits depend on its
    own column alone."""
    o = 0
    while o < outputs:
        own, line = weights + 4 * o * apart, out + 4 * o * width
        if outputs - o >= 4:
            _combine_four(rows, count, own, apart, line, width)
            o += 4
        elif outputs - o >= 2:
            _combine_two(rows, count, own, apart, line, width)
            o += 2
        else:
            _combine_one(rows, count, own, apart, line, width)
            o += 1


def _dotter(outputs: int) -> Any:
    """Code for use in a kernel: `dots` for this number of outputs."""

    @intrinsic
    def dot(typing: Any, row: Any, vectors: Any, x: Any, apart: Any, out: Any, spread: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _Dotting(context, builder, outputs).whole(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return dot


class _Dotting(Code):
    """The code of one `dot`."""

    def __init__(self, context: Any, builder: Any, outputs: int) -> None:
        super().__init__(context, builder)
        self.outputs = outputs

    def whole(self, row: Any, vectors: Any, x: Any, apart: Any, out: Any, spread: Any) -> None:
        """Sixteen sums of every sixteenth product, then their sum by halves."""
        b = self.b
        factors = [self.at(x, b.mul(apart, LONG(4 * o))) for o in range(self.outputs)]

        def of_sixteen(i: Any, sums: Sequence[Any]) -> Sequence[Any]:
            offset = b.shl(i, LONG(6))
            numbers = self.load(self.at(row, offset), FLOATS, 4)
            own = [self.load(self.at(factor, offset), FLOATS, 4) for factor in factors]
            return [self.fused(numbers, each, total) for each, total in zip(own, sums, strict=True)]

        sums = self.repeated(vectors, [self.all(FLOATS, 0) for _ in factors], of_sixteen)
        for o, total in enumerate(sums):
            self.store(self.folded(total, b.fadd), self.at(out, b.mul(spread, LONG(4 * o))), 4)


_dot_one, _dot_two = _dotter(1), _dotter(2)


@contracted
def dots(row: int, width: int, x: int, outputs: int, out: int, spread: int) -> None:
    """The products of a row of `width` numbers with one or two others, which lie side by side at `x`: out[0], out[spread]."""
    vectors = width // LANES
    if outputs == 2:
        _dot_two(row, vectors, x, width, out, spread)
    else:
        _dot_one(row, vectors, x, width, out, spread)
    for o in range(outputs):
        total = float32_at(out)[o * spread]
        for c in range(vectors * LANES, width):
            total += float32_at(row)[c] * float32_at(x)[o * width + c]
        float32_at(out)[o * spread] = total
