"""`cache_lines` for keys and values of bfloat16, where one instruction multiplies pairs of them (AVX-512 BF16).

Queries and weights are rounded to bfloat16 for it, which a draft may do."""

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.extending import intrinsic

from .bfdot import HALVES, PAIRS
from .cache_lines import TOGETHER, LineCode, score_of, weigh
from .compiled import compiled
from .instructions import has
from .vector import FLOATS, LONG, WORD, WORDS

# numbers of a line that are multiplied at once
STEP = 32


def has_pairs() -> bool:
    """Whether numba compiles for a machine that multiplies pairs of bfloat16 at once."""
    return bool(has("avx512bf16", "avx512bw"))


class _PairCode(LineCode):
    """Code for lines of bfloat16, and rows of it that are multiplied with them."""

    power = 5

    def multiplied(self, line: Any, queries: Sequence[Any], v: Any, sums: Sequence[Any]) -> Sequence[Any]:
        offset = self.b.shl(v, LONG(6))
        key = self.pairs(self.load(self.at(line, offset), WORDS))
        own = [self.pairs(self.load(self.at(query, offset), WORDS)) for query in queries]
        return [self.added(total, numbers, key) for total, numbers in zip(sums, own, strict=True)]

    def pairs(self, words: Any) -> Any:
        """16 pairs of bfloat16 with these bits."""
        return self.b.bitcast(words, PAIRS)

    def added(self, total: Any, a: Any, b: Any) -> Any:
        """`total` and the products of 16 pairs, both of a pair."""
        return self.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, total, a, b)

    def weigh_pairs(self, lines: Any, count: Any, column: Any, x: Any, apart: Any, out: Any, width: Any) -> None:
        """Values by weights at `x` are added at `out`, those of `count` pairs of lines that follow each other: `vectors` times STEP
        numbers from `column` on."""
        b = self.b
        weights, vectors = self.each(x, apart), range(self.vectors)
        first = b.shl(column, LONG(1))
        rows = [self.at(row, b.shl(column, LONG(2))) for row in self.each(out, width)]
        places = [self.at(row, 64 * v) for row in rows for v in range(2 * self.vectors)]
        orders = [[STEP * side + lane for lane in range(start, start + 16) for side in (0, 1)] for start in (0, 16)]

        def of_pair(i: Any, sums: Sequence[Any]) -> Sequence[Any]:
            both = [self.at(self.line(lines, self.at(b.shl(i, LONG(1)), side)), first) for side in (0, 1)]
            halves = [tuple(self.load(self.at(line, 64 * v), HALVES) for line in both) for v in vectors]
            values = [self.pairs(b.bitcast(self.pick(one, other, order), WORDS)) for one, other in halves for order in orders]
            own = [self.load(self.at(row, b.shl(i, LONG(2))), WORD) for row in weights]
            spread = [weight for weight in (self.pairs(self.spread(one)) for one in own) for _ in values]
            return [self.added(total, w, values[j % len(values)]) for j, (w, total) in enumerate(zip(spread, sums, strict=True))]

        sums = self.repeated(count, [self.load(place, FLOATS, 4) for place in places], of_pair)
        for place, total in zip(places, sums, strict=True):
            self.store(total, place, 4)


def _weigher(rows: int, vectors: int) -> Any:
    """For kernels: `_PairCode.weigh_pairs`."""

    @intrinsic
    def weighs(typing: Any, lines: Any, count: Any, column: Any, x: Any, apart: Any, out: Any, width: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _PairCode(context, builder, 2, rows, vectors).weigh_pairs(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return weighs


if has_pairs():
    _narrow_one, _narrow_four = _weigher(1, 1), _weigher(TOGETHER, 1)
    _wide_one, _wide_four = _weigher(1, 2), _weigher(TOGETHER, 2)

    # `cache_lines.score` of queries uint16 [rows, size], bfloat16, where size is a multiple of STEP.
    score_pairs = score_of(2, _PairCode)

    @compiled
    def weigh_pairs(lines: Any, odd: int, weights: Any, halves: Any, sums: Any) -> None:
        """`cache_lines.weigh` of values that have a multiple of STEP numbers. halves: uint16 [rows, n], `weights` as bfloat16.

        odd: 1 where the first line is the second of a pair, whose first one is left out: a position is always the first one of its
        pair, or always the second, so that a row's bits do not depend on where its lines are cut."""
        (rows, size), pairs = sums.shape, (lines.shape[0] - odd) // 2
        if odd != 0:
            weigh(lines[:1], 2, weights[:, :1], sums)
        if odd + 2 * pairs < lines.shape[0]:
            last = odd + 2 * pairs
            _even(lines[odd:last], halves[:, odd:last], rows, size, pairs, sums)
            weigh(lines[last:], 2, weights[:, last:], sums)
        else:
            _even(lines[odd:], halves[:, odd:], rows, size, pairs, sums)

    @compiled
    def _even(lines: Any, halves: Any, rows: int, size: int, pairs: int, sums: Any) -> None:
        """The same of whole pairs alone."""
        table, apart, width, r = lines.ctypes.data, halves.strides[0], sums.strides[0], 0
        if pairs == 0:
            return
        while r < rows:
            x, place, c = halves[r].ctypes.data, sums[r].ctypes.data, 0
            together = TOGETHER if rows - r >= TOGETHER else 1
            while c + 2 * STEP <= size:
                if together == TOGETHER:
                    _wide_four(table, pairs, c, x, apart, place, width)
                else:
                    _wide_one(table, pairs, c, x, apart, place, width)
                c += 2 * STEP
            if c < size:
                if together == TOGETHER:
                    _narrow_four(table, pairs, c, x, apart, place, width)
                else:
                    _narrow_one(table, pairs, c, x, apart, place, width)
            r += together

else:

    @compiled
    def score_pairs(lines: Any, queries: Any, scaling: Any, out: Any) -> None:
        """There is no such instruction here, and nobody calls it."""

    @compiled
    def weigh_pairs(lines: Any, odd: int, weights: Any, halves: Any, sums: Any) -> None:
        """There is no such instruction here, and nobody calls it."""
