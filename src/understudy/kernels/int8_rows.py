"""Rows of bfloat16 or float32 rounded to int8 in groups of columns, 16 at a time: for use inside kernels.

All rows of a draft's level are rounded by one thread before the others can begin to multiply, so this is written as vectors: as a
loop, which LLVM leaves as it is, it takes seven times as long."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .compiled import compiled, float_of
from .numbers import ROUNDING
from .vector import BYTE, FLOATS, LONG, WORDS, Code, Vector


class _Sixteens(Code):
    """Code that goes through numbers of `itemsize` bytes at `source`, 16 at a time."""

    def __init__(self, context: Any, builder: Any, source: Any, itemsize: int) -> None:
        super().__init__(context, builder)
        self.source, self.itemsize = source, itemsize

    def through(self, count: Any, step: Callable[[Any, Any, Any], Any]) -> Any:
        """What `step` makes of each 16 numbers, as the bits of float32, of where they begin, and of what it made before: zeros at
        first."""

        def of_sixteen(i: Any, held: Sequence[Any]) -> Sequence[Any]:
            first = self.b.shl(i, LONG(4))
            numbers = self.floats(self.at(self.source, self.b.mul(first, LONG(self.itemsize))), self.itemsize)
            return [step(self.b.bitcast(numbers, WORDS), first, held[0])]

        return self.repeated(self.b.lshr(count, LONG(4)), [self.all(WORDS, 0)], of_sixteen)[0]

    def larger(self, a: Any, b: Any) -> Any:
        return self.b.select(self.b.icmp_signed(">", a, b), a, b)


def _largest(itemsize: int) -> Any:
    """For kernels: the bits of the largest magnitude among `count` numbers, a multiple of 16. Magnitudes are compared by their
    bits as integers: the order is the same, and what is no number is the largest."""

    @intrinsic
    def largest(typing: Any, source: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = _Sixteens(context, builder, arguments[0], itemsize)

            def step(words: Any, _: Any, held: Any) -> Any:
                return code.larger(builder.and_(words, code.all(WORDS, 0x7FFFFFFF)), held)

            return builder.zext(code.folded(code.through(arguments[1], step), code.larger), LONG)

        return types.int64(types.int64, types.int64), generate

    return largest


def _rounded(itemsize: int) -> Any:
    """For kernels: put `count` numbers (a multiple of 16) times `inverse`, rounded, at `codes` as int8; gives their sum."""

    @intrinsic
    def rounded(typing: Any, source: Any, count: Any, inverse: Any, codes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, count, inverse, codes = arguments
            code = _Sixteens(context, builder, source, itemsize)
            times, rounding = code.spread(inverse), code.all(FLOATS, ROUNDING)

            def step(words: Any, first: Any, held: Any) -> Any:
                numbers = builder.fmul(builder.bitcast(words, FLOATS), times)
                whole = builder.fptosi(builder.fsub(builder.fadd(numbers, rounding), rounding), WORDS)
                code.store(builder.trunc(whole, Vector(BYTE, 16)), code.at(codes, first))
                return builder.add(held, whole)

            return builder.sext(code.folded(code.through(count, step), builder.add), LONG)

        return types.int64(types.int64, types.int64, types.float32, types.int64), generate

    return rounded


_largest_half, _largest_float = map(_largest, (2, 4))
_rounded_half, _rounded_float = map(_rounded, (2, 4))


@compiled
def to_int8(source: int, itemsize: int, codes: Any, steps: Any) -> None:
    """Round each group of columns of each row to a step times -127..127: `codes` int8 [groups, rows, columns of a group]; in
    `steps` float32 [groups, rows, 2] the step, and the step times the codes' sum.

    `source`: the address of the rows, one after the other; itemsize: bytes of a number, 2 (bfloat16) or 4 (float32). A group has
    a multiple of 16 columns."""
    groups, rows, width = codes.shape
    for r in range(rows):
        for g in range(groups):
            place, into = source + (r * groups + g) * width * itemsize, codes[g, r].ctypes.data
            largest = _largest_half(place, width) if itemsize == 2 else _largest_float(place, width)
            step = max(float_of(largest) * np.float32(1 / 127), np.float32(1e-30))
            inverse = np.float32(1) / step
            if itemsize == 2:
                total = _rounded_half(place, width, inverse, into)
            else:
                total = _rounded_float(place, width, inverse, into)
            steps[g, r, 0] = step
            steps[g, r, 1] = step * np.float32(total)
