"""Exponentials, softmax and silu, 16 numbers at a time: for use inside kernels. As a loop, LLVM makes them one by one.

An exponential is our own (Cody-Waite, a polynomial of degree 6), so that a number has the same bits wherever it stands."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .compiled import contracted
from .numbers import ROUNDING
from .vector import FLOATS, LONG, WORD, WORDS, Code

LOG2E = 1.4426950408889634
# ln 2 in two parts, the first with so few bits that a whole number times it is exact
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860677e-06
# of the power series of an exponential within half of ln 2, from the highest power down to the square
SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# exponentials of less are that of this
LOWEST = -87.0
# of GELU: sqrt(2 / pi), and the factor of the cube
ROOT, CUBIC = 0.7978845608028654, 0.044715


class Exponentials(Code):
    """Code for 16 numbers, and for a line of them from place `first` to place `last`."""

    def exponential(self, x: Any) -> Any:
        """exp(x) of numbers up to 0; what is no number stays none."""
        b = self.b
        lowest = self.all(FLOATS, LOWEST)
        x = b.select(b.fcmp_ordered("<", x, lowest), lowest, x)
        # the nearest whole number is in the last bits of this
        placed = self.fused(x, self.all(FLOATS, LOG2E), self.all(FLOATS, ROUNDING))
        n = b.fsub(placed, self.all(FLOATS, ROUNDING))
        power = b.add(b.shl(b.bitcast(placed, WORDS), self.all(WORDS, 23)), self.all(WORDS, 127 << 23))
        r = self.fused(n, self.all(FLOATS, -LN2_LOW), self.fused(n, self.all(FLOATS, -LN2_HIGH), x))
        p = self.all(FLOATS, SERIES[0])
        for factor in SERIES[1:]:
            p = self.fused(p, r, self.all(FLOATS, factor))
        whole = b.fadd(self.fused(b.fmul(p, r), r, r), self.all(FLOATS, 1.0))
        return b.fmul(whole, b.bitcast(power, FLOATS))

    def silu(self, x: Any) -> Any:
        """x / (1 + exp(-x))."""
        return self.opened(x, x)

    def logistic(self, x: Any) -> Any:
        """1 / (1 + exp(-x))."""
        return self.opened(self.all(FLOATS, 1.0), x)

    def gelu(self, x: Any) -> Any:
        """x / (1 + exp(-2 u)), where u = sqrt(2 / pi) (x + 0.044715 x^3): GELU by its hyperbolic tangent."""
        cube = self.b.fmul(self.b.fmul(x, x), x)
        return self.opened(x, self.b.fmul(self.fused(cube, self.all(FLOATS, CUBIC), x), self.all(FLOATS, 2 * ROOT)))

    def opened(self, x: Any, by: Any) -> Any:
        """x times the logistic function of `by`."""
        b = self.b
        size = self.intrinsic("llvm.fabs.v16f32", FLOATS, by)
        power, one = self.exponential(b.fneg(size)), self.all(FLOATS, 1.0)
        share = b.select(b.fcmp_ordered(">=", by, self.all(FLOATS, 0.0)), one, power)
        return b.fdiv(b.fmul(x, share), b.fadd(one, power))

    def along(self, line: Any, first: Any, last: Any, begin: Any, step: Callable[[Any, Any, Any], Any]) -> Any:
        """What `step` makes of the address of each 16 places from the one of `first` to that of `last`, what chooses between two
        vectors by which of the places lie in between (the second: those beside), and what it made before: in the end, from `begin`.

        Only the first and last 16 have places beside."""
        b = self.b
        start = b.and_(first, LONG(-16))
        low, high = (self.spread(b.trunc(end, WORD)) for end in (first, last))
        sixteens = b.lshr(b.add(b.sub(last, start), LONG(16)), LONG(4))
        several = b.zext(b.icmp_signed(">", sixteens, LONG(1)), LONG)

        def stretch(before: Any, count: Any, held: Any, ends: bool) -> Any:
            def of_sixteen(i: Any, held: Sequence[Any]) -> Sequence[Any]:
                k = b.add(start, b.shl(b.add(before, i), LONG(4)))
                if not ends:
                    return [step(self.at(line, b.shl(k, LONG(2))), lambda inside, beside: inside, held[0])]
                place = b.add(self.spread(b.trunc(k, WORD)), self.constant(WORDS, list(range(16))))
                inside = b.and_(b.icmp_signed(">=", place, low), b.icmp_signed("<=", place, high))
                return [step(self.at(line, b.shl(k, LONG(2))), partial(b.select, inside), held[0])]

            return self.repeated(count, [held], of_sixteen)[0]

        begun = stretch(LONG(0), LONG(1), begin, True)
        between = stretch(LONG(1), b.sub(b.sub(sixteens, LONG(1)), several), begun, False)
        return stretch(b.sub(sixteens, LONG(1)), several, between, True)

    def largest(self, line: Any, first: Any, last: Any, floor: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

        def step(address: Any, chosen: Any, held: Any) -> Any:
            return chosen(larger(self.load(address, FLOATS, 4), held), held)

        return self.folded(self.along(line, first, last, self.spread(floor), step), larger)

    def exponentials(self, line: Any, first: Any, last: Any, top: Any) -> Any:
        """exp(x - top) in place, zeros beside; their sum."""
        zero, tops = self.all(FLOATS, 0.0), self.spread(top)

        def step(address: Any, chosen: Any, held: Any) -> Any:
            found = chosen(self.exponential(self.b.fsub(self.load(address, FLOATS, 4), tops)), zero)
            self.store(found, address, 4)
            return self.b.fadd(held, found)

        return self.folded(self.along(line, first, last, zero, step), self.b.fadd)

    def capped(self, line: Any, first: Any, last: Any, cap: Any) -> Any:
        """cap * tanh(x / cap) in place, zeros beside; zero."""
        b, zero, caps = self.b, self.all(FLOATS, 0.0), self.spread(cap)
        twice = b.fadd(caps, caps)
        steepness = b.fdiv(self.all(FLOATS, 2.0), caps)

        def step(address: Any, chosen: Any, held: Any) -> Any:
            x = self.load(address, FLOATS, 4)
            self.store(chosen(b.fsub(self.opened(twice, b.fmul(x, steepness)), caps), zero), address, 4)
            return held

        return self.folded(self.along(line, first, last, zero, step), b.fadd)

    def times(self, line: Any, first: Any, last: Any, factor: Any) -> Any:
        """All numbers times `factor`, in place, zeros beside; zero."""
        zero, factors = self.all(FLOATS, 0.0), self.spread(factor)

        def step(address: Any, chosen: Any, held: Any) -> Any:
            self.store(chosen(self.b.fmul(self.load(address, FLOATS, 4), factors), zero), address, 4)
            return held

        return self.folded(self.along(line, first, last, zero, step), self.b.fadd)


def _over_line(name: str) -> Any:
    """For kernels: the method `name` of `Exponentials`, of a line, its first and last place and a float32."""

    @intrinsic
    def over(typing: Any, line: Any, first: Any, last: Any, number: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(Exponentials(context, builder), name)(*arguments)

        return types.float32(types.int64, types.int64, types.int64, types.float32), generate

    return over


_largest, _exponentials, _times, _capped = map(_over_line, ("largest", "exponentials", "times", "capped"))


@intrinsic
def _one_exponential(typing: Any, number: Any) -> Any:
    """exp(number), with the bits that it would have in a line."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Exponentials(context, builder)
        return builder.extract_element(code.exponential(code.spread(arguments[0])), WORD(0))

    return types.float32(types.float32), generate


def _gate(name: str) -> Any:
    """For kernels: first = the method `name` of `Exponentials` of it, times second, of the 64 float32 at each of two addresses."""

    @intrinsic
    def gate(typing: Any, first: Any, second: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = Exponentials(context, builder)
            for offset in range(0, 256, 64):
                place, other = (code.at(address, offset) for address in arguments)
                opened = getattr(code, name)(code.load(place, FLOATS, 4))
                code.store(builder.fmul(opened, code.load(other, FLOATS, 4)), place, 4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return gate


silu_gate, gelu_gate, logistic_gate = map(_gate, ("silu", "gelu", "logistic"))
_exponential: Any = _one_exponential


@contracted
def softmax(line: Any, first: int, last: int, sink: Any) -> None:
    """In place over line[first..last] and one more score `sink` (-inf: none), which is last in the sum. What lies beside, up to a
    multiple of 16 places, becomes zero.

    Sums are those of every sixteenth place, then of these by halves: their bits depend on no place outside."""
    place = line.ctypes.data
    top = _largest(place, first, last, sink)
    total = _exponentials(place, first, last, top)
    if sink > -np.inf:
        total += _exponential(sink - top)
    _times(place, first, last, np.float32(1.0) / np.float32(total))


@contracted
def capped(line: Any, first: int, last: int, cap: Any) -> None:
    """cap * tanh(x / cap) in place of each x in line[first..last]. What lies beside, up to a multiple of 16 places, becomes
    zero."""
    _capped(line.ctypes.data, first, last, cap)
