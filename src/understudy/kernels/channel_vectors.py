"""One step of a state that forgets by channel, as vector code: what is left of it, and what the step adds along its key.

What `channel_cpu.py` consists of, beside sums of weighted rows. Numbers are float32, arguments addresses and counts. A number's
bits depend on itself and on what the step brings, wherever it stands."""

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.extending import intrinsic

from .softmax import Exponentials
from .vector import FLOAT, FLOATS, LONG, Code
from .weighted import BLOCK, LANES


@intrinsic
def _advance_rows(typing: Any, source: Any, into: Any, count: Any, factors: Any, weights: Any, update: Any) -> Any:
    """into[i] = factors[i] * source[i] + weights[i] * update, for `count` rows of BLOCK numbers side by side."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, into, count, factors, weights, update = arguments
        code = Code(context, builder)
        added = [code.load(code.at(update, 64 * v), FLOATS, 4) for v in range(BLOCK // LANES)]

        def of_row(i: Any, _: Sequence[Any]) -> Sequence[Any]:
            place, row = builder.shl(i, LONG(2)), builder.mul(i, LONG(4 * BLOCK))
            factor, weight = (code.spread(code.load(code.at(line, place), FLOAT, 4)) for line in (factors, weights))
            before = [code.load(code.at(code.at(source, row), 64 * v), FLOATS, 4) for v in range(len(added))]
            for v, (each, own) in enumerate(zip(before, added, strict=True)):
                code.store(code.fused(weight, own, builder.fmul(factor, each)), code.at(code.at(into, row), 64 * v), 4)
            return []

        code.repeated(count, [], of_row)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def _advance_rated(
    typing: Any, source: Any, into: Any, vectors: Any, rates: Any, lengths: Any, updates: Any, key: Any, query: Any, sums: Any
) -> Any:  # fmt: skip
    """For BLOCK rows of 16 * `vectors` numbers, all side by side: into[i] = exp(rates[i] * lengths[i]) * source[i]
    + updates[i] * key, and sums[i] = the sum of its products with query. sums: [BLOCK], and room for as many vectors behind it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, into, vectors, rates, lengths, updates, key, query, sums = arguments
        code = Exponentials(context, builder)
        room = code.at(sums, 4 * BLOCK)

        def of_row(i: Any, _: Sequence[Any]) -> Sequence[Any]:
            place, row = builder.shl(i, LONG(2)), builder.shl(builder.mul(i, vectors), LONG(6))
            length, update = (code.spread(code.load(code.at(line, place), FLOAT, 4)) for line in (lengths, updates))

            def of_vector(v: Any, held: Sequence[Any]) -> Sequence[Any]:
                column = builder.shl(v, LONG(6))
                here = builder.add(row, column)
                rate, before = (code.load(code.at(line, here), FLOATS, 4) for line in (rates, source))
                own, read = (code.load(code.at(line, column), FLOATS, 4) for line in (key, query))
                after = code.fused(update, own, builder.fmul(code.exponential(builder.fmul(rate, length)), before))
                code.store(after, code.at(into, here), 4)
                return [code.fused(after, read, held[0])]

            total = code.repeated(vectors, [code.all(FLOATS, 0.0)], of_vector)[0]
            code.store(total, code.at(room, builder.shl(i, LONG(6))), 4)
            return []

        code.repeated(LONG(BLOCK), [], of_row)
        for first in range(0, BLOCK, LANES):
            totals = [code.load(code.at(room, 64 * (first + i)), FLOATS, 4) for i in range(LANES)]
            code.store(code.folded_each(totals, builder.fadd), code.at(sums, 4 * first), 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


advance_rows: Any = _advance_rows
advance_rated: Any = _advance_rated
