"""A softmax over scores that come 64 at a time: the highest so far, sums of exponentials, and by how much all before fades where a
higher one comes (Milakov and Gimelshein, arXiv 1805.02867). For the exact attention: no bit of a row depends on another.

A row has 16 sums, of every sixteenth place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .bfdot import Brain, rounded
from .compiled import contracted
from .instructions import has
from .softmax import Exponentials
from .vector import FLOAT, FLOATS, HALF, LONG, WORD, WORDS, Vector
from .weighted import BLOCK, LANES

VECTORS = BLOCK // LANES


class _Running(Exponentials):
    """The code for 64 scores of each of some rows."""

    def rows(self, arguments: Any, masked: bool, halves: bool) -> Any:
        """`weights`. Returns whether a row has a higher score than before, as int64."""
        scores, target, count, first, last, scale, tops, sums, fades = arguments
        b = self.b
        inside = [self._inside(v, first, last) for v in range(VECTORS)] if masked else [None] * VECTORS
        factor = self.spread(scale)

        def of_row(i: Any, held: Any) -> Any:
            line = self.at(scores, b.mul(i, LONG(4 * BLOCK)))
            numbers = [b.fmul(self.load(self.at(line, 64 * v), FLOATS, 4), factor) for v in range(VECTORS)]
            top, own = self.at(tops, b.shl(i, LONG(2))), self.at(sums, b.mul(i, LONG(4 * LANES)))
            higher, after = self._raised(self._highest(numbers, inside), top, own, self.at(fades, b.shl(i, LONG(2))))
            there = self.at(target, b.mul(i, LONG((2 if halves else 4) * BLOCK)))
            self._put(numbers, inside, after, own, there, halves)
            return [b.or_(held[0], b.zext(higher, LONG))]

        return self.repeated(count, [LONG(0)], of_row)[0]

    def _inside(self, vector: int, first: Any, last: Any) -> Any:
        """Which of 16 places lie from place `first` to `last`."""
        b = self.b
        place = self.constant(WORDS, list(range(LANES * vector, LANES * vector + LANES)))
        low, high = (self.spread(b.trunc(end, WORD)) for end in (first, last))
        return b.and_(b.icmp_signed(">=", place, low), b.icmp_signed("<=", place, high))

    def _highest(self, numbers: Sequence[Any], inside: Sequence[Any]) -> Any:
        lowest = self.all(FLOATS, float("-inf"))
        pairs = zip(numbers, inside, strict=True)
        shown = [x if within is None else self.b.select(within, x, lowest) for x, within in pairs]
        while len(shown) > 1:
            shown = [self._larger(*pair) for pair in zip(shown[::2], shown[1::2], strict=True)]
        return self.folded(shown[0], self._larger)

    def _larger(self, a: Any, b: Any) -> Any:
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def _raised(self, found: Any, top: Any, own: Any, fade: Any) -> tuple[Any, Any]:
        """Whether `found` is higher than what is at `top`, and the highest now; the 16 sums at `own` have faded then, by `fade`."""
        b = self.b
        before = self.load(top, FLOAT, 4)
        higher = b.fcmp_ordered(">", found, before)
        after = b.select(higher, found, before)
        self.store(FLOAT(1.0), fade, 4)
        with b.if_then(higher, likely=False):
            factor = self.exponential(self.spread(b.fsub(before, after)))
            self.store(b.fmul(self.load(own, FLOATS, 4), factor), own, 4)
            self.store(b.extract_element(factor, WORD(0)), fade, 4)
            self.store(after, top, 4)
        return higher, after

    def _put(self, numbers: Sequence[Any], inside: Sequence[Any], top: Any, own: Any, there: Any, halves: bool) -> None:
        """The weights at `there`, and added to the 16 sums at `own`."""
        b, tops, total = self.b, self.spread(top), self.load(own, FLOATS, 4)
        for v, (x, within) in enumerate(zip(numbers, inside, strict=True)):
            weight = self.exponential(b.fsub(x, tops))
            if within is not None:
                weight = b.select(within, weight, self.all(FLOATS, 0.0))
            total = b.fadd(total, weight)
            if halves:
                self.store(self._nearest(weight), self.at(there, 2 * LANES * v), 2)
            else:
                self.store(weight, self.at(there, 4 * LANES * v), 4)
        self.store(total, own, 4)

    def _nearest(self, numbers: Any) -> Any:
        """16 float32, none below 0, as the nearest bfloat16."""
        if has("avx512bf16", "avx512bw"):
            return self.intrinsic("llvm.x86.avx512bf16.cvtneps2bf16.512", Vector(Brain(), LANES), numbers)
        words = self.b.bitcast(numbers, WORDS)
        return self.b.trunc(rounded(self, words), Vector(HALF, LANES))


def _weigher(masked: bool, halves: bool) -> Any:
    """Code for use in a kernel: `weights`, of some places if `masked`, as bfloat16 if `halves`."""

    @intrinsic
    def weigh(
        typing: Any, scores: Any, target: Any, count: Any, first: Any, last: Any, scale: Any, tops: Any, sums: Any, fades: Any
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _Running(context, builder).rows(arguments, masked, halves)

        return types.int64(*[types.int64] * 5, types.float32, *[types.int64] * 3), generate

    return weigh


_all_floats, _some_floats = _weigher(False, False), _weigher(True, False)
_all_halves, _some_halves = _weigher(False, True), _weigher(True, True)


@contracted
def weights(scores: int, target: int, count: int, limits: Any, scale: Any, state: Any, halves: bool) -> Any:
    """At the address `target`, 64 weights of each of `count` rows of float32 scores at `scores`: exp(scale * score - the highest so
    far), zeros but for the places limits[0] to limits[1], of which there is one at least. Returns whether a score is higher than
    those before.

    state: addresses of each row's highest so far, of its 16 sums, and of what all before must be multiplied with: 1 where no score
    is higher. halves: weights are bfloat16; the sums count them as float32. Else `target` may be
    `scores`."""
    tops, sums, fades = state
    first, last = limits
    if first == 0 and last == BLOCK - 1:
        if halves:
            higher = _all_halves(scores, target, count, first, last, scale, tops, sums, fades)
        else:
            higher = _all_floats(scores, target, count, first, last, scale, tops, sums, fades)
    elif halves:
        higher = _some_halves(scores, target, count, first, last, scale, tops, sums, fades)
    else:
        higher = _some_floats(scores, target, count, first, last, scale, tops, sums, fades)
    return higher != 0


@contracted
def begin(tops: Any, sums: Any, sinks: Any) -> None:
    """Let the rows of `tops` [n] and `sums` [n, 16] have seen no score but `sinks`, one of each row in turn; there may be none."""
    for r in range(len(tops)):
        tops[r] = sinks[r % len(sinks)] if len(sinks) > 0 else np.float32(-np.inf)
        for lane in range(LANES):
            sums[r, lane] = 0
        if len(sinks) > 0:
            sums[r, 0] = 1


@contracted
def lines(count: int, size: int) -> Any:
    """[count, size] float32 zeros (size: a multiple of 16), each line at the beginning of one of the processor's cache."""
    room = np.zeros(count * size + LANES, np.float32)
    first = (-room.ctypes.data % 64) // 4
    return room[first : first + count * size].reshape(count, size)


@contracted
def total(sums: Any) -> Any:
    """The sum of 16, by halves."""
    half = LANES
    held = sums.copy()
    while half > 1:
        half //= 2
        for lane in range(half):
            held[lane] += held[lane + half]
    return held[0]
