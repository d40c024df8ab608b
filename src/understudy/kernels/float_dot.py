"""Products of a few float32 rows with columns of one block of exact weights, as vector code.

Weights are float32 when they are multiplied, and lie one column after the other; `lay_halves` and `lay_brains` make columns of
float16 and bfloat16 such, which changes no number. Each sum takes its columns in order, so a row's bits depend neither on how many
rows run nor on how columns are cut."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from .bfdot import ColumnsDot, widened
from .instructions import has
from .vector import FLOAT, FLOATS, HALF, WORD, Code, Vector

# bytes of a column of 64 weights, and the most rows at once: their sums fill the registers
LINE = 256
MOST = 6 if has("avx2") else 4
# the bits of 2.0 ** -14, the smallest number of float16 with all its places, as float32
SMALLEST = 113 << 23


def float_dot(rows: int) -> Any:
    """Code for use in a kernel: sums += x @ weights.T for `rows` rows of x, float32, `stride` bytes apart, over `columns` columns
    (even) of 64 weights, float32, at `weights`. `sums`: float32 [rows, 64]. All but the numbers are addresses."""

    @intrinsic
    def add_columns(typing: Any, weights: Any, columns: Any, x: Any, stride: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _FloatDot(context, builder, rows, *arguments).loop()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return add_columns


class _FloatDot(ColumnsDot):
    """The code of one `add_columns`."""

    def loop(self) -> None:
        self.in_floats, self.laid, self.pitch = True, True, LINE
        self.wide = self.lines
        self.all_outputs(self.weights, self.columns)

    def weights_at(self, address: Any) -> Any:
        # They may lie where they were read.
        return self.load(address, FLOATS, 4)


def halves_widened(code: Code, values: Any) -> Any:
    """Numbers with the bits `values`, float16, as float32. NaN stays NaN, of any bits."""
    b, count = code.b, values.type.count
    if has("f16c") or has("neon"):
        return b.fpext(b.bitcast(values, Vector(ir.HalfType(), count)), Vector(FLOAT, count))
    return b.bitcast(words_of_halves(code, values), Vector(FLOAT, count))


def words_of_halves(code: Code, values: Any) -> Any:
    """The bits of float32 of numbers with the bits `values`, float16: of NaN those behind the point too."""
    b, count = code.b, values.type.count
    floats, words = Vector(FLOAT, count), Vector(WORD, count)
    wide = b.zext(values, words)
    shifted = b.shl(b.and_(wide, code.all(words, 0x7FFF)), code.all(words, 13))
    sign = b.shl(b.and_(wide, code.all(words, 0x8000)), code.all(words, 16))
    usual = b.add(shifted, code.all(words, 112 << 23))
    # As if it had all its places, less what it then has too much.
    least = code.all(words, SMALLEST)
    small = b.bitcast(b.fsub(b.bitcast(b.add(shifted, least), floats), b.bitcast(least, floats)), words)
    endless = b.icmp_unsigned(">=", shifted, code.all(words, 0x7C00 << 13))
    tiny = b.icmp_unsigned("<", shifted, code.all(words, 0x0400 << 13))
    made = b.select(endless, b.add(shifted, code.all(words, 224 << 23)), b.select(tiny, small, usual))
    return b.or_(made, sign)


def _laying(widen: Any) -> Any:
    """Code for use in a kernel: one column of 64 weights of 16 bits at `source`, as float32 at `target`, by `widen`."""

    @intrinsic
    def lay(typing: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = Code(context, builder)
            source, target = arguments
            for v in range(4):
                numbers = widen(code, code.load(code.at(source, 32 * v), Vector(HALF, 16)))
                code.store(numbers, code.at(target, 64 * v), 64)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return lay


lay_halves, lay_brains = map(_laying, (halves_widened, widened))


@intrinsic
def _give_floats(typing: Any, source: Any, target: Any) -> Any:
    """64 float32 as they are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder)
        for v in range(4):
            code.store(code.load(code.at(arguments[0], 64 * v), FLOATS, 64), code.at(arguments[1], 64 * v), 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


give_floats: Any = _give_floats
