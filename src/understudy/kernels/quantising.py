"""Weights as codes with a scale and a zero, 16 rows side by side: vector code that `hqq` and `fitting` share.

w ~ (q - centre) * scale + zero for codes q of b bits, whose centre is 2 ** (b - 1). As loops, LLVM leaves most of this as it is: it
would have to compare too many addresses first."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from .codes import QUARTER, Codes
from .compiled import compiled
from .numbers import ROUNDING
from .vector import FLOATS, LONG, WORDS, Code

# scales from which on a code is told from the next one
LEAST = 1e-36
# bytes from a weight of a column to that of the next column: those of its 64 rows
COLUMN = 256


class Quantising(Code):
    """Code for 16 rows of a group, all float32."""

    def steps(self, weights: Any, inverse: Any, zero: Any) -> Any:
        """How many codes of 1 / `inverse` each lie between `zero` and the weights."""
        return self.b.fmul(self.b.fsub(weights, zero), inverse)

    def nearest(self, steps: Any, bits: int) -> Any:
        """The nearest code less its centre, as float32."""
        b, first, last = self.b, self.all(FLOATS, -float(1 << bits - 1)), self.all(FLOATS, float((1 << bits - 1) - 1))
        steps = b.select(b.fcmp_ordered(">", steps, first), steps, first)
        steps = b.select(b.fcmp_ordered("<", steps, last), steps, last)
        rounding = self.all(FLOATS, ROUNDING)
        return b.fsub(b.fadd(steps, rounding), rounding)

    def bfloat16(self, numbers: Any) -> Any:
        """The nearest bfloat16 of each, ties to even, as float32."""
        b, word = self.b, self.b.bitcast(numbers, WORDS)
        odd = b.and_(b.lshr(word, self.all(WORDS, 16)), self.all(WORDS, 1))
        rounded = b.add(b.add(word, self.all(WORDS, 0x7FFF)), odd)
        return b.bitcast(b.and_(rounded, self.all(WORDS, -0x10000)), FLOATS)

    def inverse(self, scale: Any) -> Any:
        """1 / scale; 0 where all codes mean the same."""
        usable = self.b.fcmp_ordered(">", scale, self.all(FLOATS, LEAST))
        return self.b.select(usable, self.b.fdiv(self.all(FLOATS, 1.0), scale), self.all(FLOATS, 0.0))

    def keep(self, scale: Any, zero: Any, words: Any) -> None:
        """Put scales and zeros, which are bfloat16 numbers, at the address `words`, as a Store has them."""
        low = self.b.lshr(self.b.bitcast(scale, WORDS), self.all(WORDS, 16))
        self.store(self.b.or_(low, self.b.bitcast(zero, WORDS)), words)

    def kept(self, words: Any) -> tuple[Any, Any]:
        """Scales and zeros that lie at the address `words`."""
        word = self.load(words, WORDS)
        scale = self.b.bitcast(self.b.shl(word, self.all(WORDS, 16)), FLOATS)
        return scale, self.b.bitcast(self.b.and_(word, self.all(WORDS, -0x10000)), FLOATS)


def _coder(bits: int) -> Any:
    """Code for use in a kernel: packs the codes nearest to `columns` columns of 64 float32 weights, those of one group.

    `words`: scale and zero of each row. All but `columns` are addresses."""

    @intrinsic
    def write_codes(typing: Any, weights: Any, words: Any, columns: Any, codes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, words, columns, codes = arguments
            code, packing = Quantising(context, builder), Codes(context, builder, bits)
            fits = []
            for v in range(4):
                scale, zero = code.kept(code.at(words, 64 * v))
                fits.append((code.inverse(scale), zero))

            def of_column(k: Any, _: Any) -> list[Any]:
                here, column = code.at(weights, builder.mul(k, LONG(COLUMN))), []
                for v, (inverse, zero) in enumerate(fits):
                    steps = code.steps(code.load(code.at(here, 64 * v), FLOATS), inverse, zero)
                    found = builder.fptosi(code.nearest(steps, bits), WORDS)
                    column.append(builder.trunc(builder.add(found, code.all(WORDS, 1 << bits - 1)), QUARTER))
                packing.put(column, code.at(codes, builder.mul(k, LONG(8 * bits))))
                return []

            code.repeated(columns, [], of_column)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return write_codes


_code_2, _code_3, _code_4, _code_6 = map(_coder, (2, 3, 4, 6))


@compiled
def code_group(weights: int, words: int, columns: int, bits: int, codes: int) -> None:
    """Pack the nearest codes of a group's weights float32 [columns, 64], with scales and zeros as in `words`."""
    if bits == 4:
        _code_4(weights, words, columns, codes)
    elif bits == 3:
        _code_3(weights, words, columns, codes)
    elif bits == 6:
        _code_6(weights, words, columns, codes)
    else:
        _code_2(weights, words, columns, codes)
