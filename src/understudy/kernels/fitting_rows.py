"""The steps of `fitting` for 16 rows of a group, as vector code. All numbers are float32, all arguments but `weight` and counts
addresses."""

from collections.abc import Callable, Sequence
from typing import Any

from numba import types
from numba.extending import intrinsic

from .quantising import COLUMN, Quantising
from .vector import FLOATS, LONG

# Lines of 64 numbers, one a row, of what a group has (its state): scale, inverse and zero; sums over the group, weighted by `own`,
# of q, q * q, q * w and w, and of the squared errors; then V' of its codes.
SCALE, INVERSE, ZERO, Q, QQ, QW, W, ERROR, CODED = range(9)
LINE = 256


class Fitting(Quantising):
    """Code for 16 rows of a state at this address, beside V' of their exact weights and of ones."""

    def __init__(self, context: Any, builder: Any, state: Any, exact: Any = None, ones: Any = None, rank: Any = None) -> None:
        super().__init__(context, builder)
        self.state, self.exact, self.ones, self.rank = state, exact, ones, rank

    def number(self, line: int, state: Any = None) -> Any:
        return self.load(self.at(self.state if state is None else state, line * LINE), FLOATS)

    def put(self, values: Sequence[Any], first: int) -> None:
        """Put `values` in the state's lines from `first` on."""
        for line, value in enumerate(values, first):
            self.store(value, self.at(self.state, line * LINE))

    def given(self, r: Any, state: Any = None) -> Any:
        """What a state adds to V' e in direction r."""
        coded, one, exact = self.parts(r, self.state if state is None else state)
        own = self.fused(one, self.number(ZERO, state), self.b.fneg(exact))
        return self.fused(coded, self.number(SCALE, state), own)

    def parts(self, r: Any, state: Any) -> tuple[Any, Any, Any]:
        """In direction r: V' of a state's codes, of ones and of the exact weights."""
        line = self.b.mul(r, LONG(LINE))
        one = self.spread(self.load(self.at(self.ones, self.b.shl(r, LONG(2))), FLOATS.element))
        return self.load(self.at(self.at(state, CODED * LINE), line), FLOATS), one, self.load(self.at(self.exact, line), FLOATS)

    def each_direction(self, begin: Sequence[Any], step: Callable[[Any, Any, Sequence[Any]], Sequence[Any]]) -> Sequence[Any]:
        """What `step` makes of each direction, of where its line begins among others, and of what it made before."""
        return self.repeated(self.rank, begin, lambda r, held: step(r, self.b.mul(r, LONG(LINE)), held))

    def begin(self, words: Any) -> None:
        scale, zero = self.kept(words)
        self.put([scale, self.inverse(scale), zero], SCALE)

    def weigh(self, weights: Any, own: Any, columns: Any, codes: Any, bits: int) -> None:
        """The sums of the state, and its codes less their centre [K, 64]."""
        b, (scale, inverse, zero) = self.b, (self.number(line) for line in (SCALE, INVERSE, ZERO))

        def of_column(k: Any, sums: Sequence[Any]) -> Sequence[Any]:
            place = b.mul(k, LONG(COLUMN))
            w = self.load(self.at(weights, place), FLOATS)
            size = self.spread(self.load(self.at(own, b.shl(k, LONG(2))), FLOATS.element))
            q = self.nearest(self.steps(w, inverse, zero), bits)
            self.store(q, self.at(codes, place))
            error = b.fsub(self.fused(q, scale, zero), w)
            sized = b.fmul(size, q)
            factors = (q, sized), (w, sized), (w, size), (error, b.fmul(size, error))
            pairs = zip(factors, sums[1:], strict=True)
            return [b.fadd(sums[0], sized), *(self.fused(*pair, total) for pair, total in pairs)]

        self.put(self.repeated(columns, [self.all(FLOATS, 0.0)] * 5, of_column), Q)

    def join(self, total: Any) -> None:
        """Add to V' e what the state gives."""

        def of_direction(r: Any, line: Any, _: Sequence[Any]) -> Sequence[Any]:
            place = self.at(total, line)
            self.store(self.b.fadd(self.load(place, FLOATS), self.given(r)), place)
            return []

        self.each_direction([], of_direction)

    def solve(self, total: Any, rest: Any, weight: Any, trial: Any) -> None:
        """Least squares for scale and zero into the state `trial`, given V' e of all other groups, which goes to `rest` with the
        error as it is after it."""
        b, begin = self.b, [self.number(line) for line in (ERROR, Q, QQ, QW, W)]

        def of_direction(r: Any, line: Any, held: Sequence[Any]) -> Sequence[Any]:
            error, q, qq, qw, w = held
            whole = self.load(self.at(total, line), FLOATS)
            others = b.fsub(whole, self.given(r))
            self.store(others, self.at(rest, line))
            coded, one, exact = self.parts(r, self.state)
            target = b.fsub(exact, others)
            factors = (whole, whole), (coded, one), (coded, coded), (coded, target), (one, target)
            return [self.fused(*pair, sum_) for pair, sum_ in zip(factors, (error, q, qq, qw, w), strict=True)]

        error, *sums = self.each_direction(begin, of_direction)
        self.store(error, self.at(rest, b.mul(self.rank, LONG(LINE))))
        found = self.solved(sums, self.spread(weight))
        self.state = trial
        self.put(found, SCALE)

    def solved(self, sums: Sequence[Any], weight: Any) -> Sequence[Any]:
        """Scale, inverse and zero; those of the state where these would be no numbers or far from them."""
        b, (q, qq, qw, w) = self.b, sums
        spread = b.fsub(qq, b.fdiv(b.fmul(q, q), weight))
        scale = b.fdiv(b.fsub(qw, b.fdiv(b.fmul(q, w), weight)), spread)
        wide = b.fcmp_ordered(">", spread, b.fmul(self.all(FLOATS, 1e-4), weight))
        scale = b.select(wide, scale, self.all(FLOATS, 0.0))
        zero = b.fdiv(b.fsub(w, b.fmul(scale, q)), weight)
        old, old_zero = self.number(SCALE), self.number(ZERO)
        # also false where something is not a number
        usable = b.fcmp_ordered("==", b.fsub(zero, zero), self.all(FLOATS, 0.0))
        for sign, factor in (">", 0.5), ("<", 2.0):
            usable = b.and_(usable, b.fcmp_ordered(sign, scale, b.fmul(self.all(FLOATS, factor), old)))
        scale, zero = b.select(usable, self.bfloat16(scale), old), b.select(usable, self.bfloat16(zero), old_zero)
        return [scale, self.inverse(scale), zero]

    def decide(self, total: Any, rest: Any, trial: Any) -> None:
        """The rows of the state whose error is less in `trial` become those, and V' e with them."""

        def longer(r: Any, line: Any, held: Sequence[Any]) -> Sequence[Any]:
            found = self.b.fadd(self.load(self.at(rest, line), FLOATS), self.given(r, trial))
            return [self.fused(found, found, held[0])]

        after = self.each_direction([self.number(ERROR, trial)], longer)[0]
        before = self.load(self.at(rest, self.b.mul(self.rank, LONG(LINE))), FLOATS)
        better = self.b.fcmp_ordered("<", after, before)

        def chosen(line: Any, new: Any, held: Any) -> None:
            place = self.at(held, line)
            self.store(self.b.select(better, new, self.load(place, FLOATS)), place)

        def taken(r: Any, line: Any, _: Sequence[Any]) -> Sequence[Any]:
            chosen(line, self.b.fadd(self.load(self.at(rest, line), FLOATS), self.given(r, trial)), total)
            line = self.at(line, CODED * LINE)
            chosen(line, self.load(self.at(trial, line), FLOATS), self.state)
            return []

        self.each_direction([], taken)
        for line in range(CODED):
            chosen(LONG(line * LINE), self.number(line, trial), self.state)


@intrinsic
def _begin_rows(typing: Any, words: Any, state: Any) -> Any:
    """Scales, inverses and zeros of 16 rows, from the words of a Store."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        Fitting(context, builder, arguments[1]).begin(arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _keep_rows(typing: Any, state: Any, words: Any) -> Any:
    """The reverse of `_begin`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Fitting(context, builder, arguments[0])
        code.keep(code.number(SCALE), code.number(ZERO), arguments[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _join_rows(typing: Any, state: Any, exact: Any, ones: Any, rank: Any, total: Any) -> Any:
    """`Fitting.join` of 16 rows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        Fitting(context, builder, *arguments[:4]).join(arguments[4])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def _solve_rows(typing: Any, state: Any, exact: Any, ones: Any, rank: Any, total: Any, rest: Any, weight: Any, trial: Any) -> Any:
    """`Fitting.solve` of 16 rows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        Fitting(context, builder, *arguments[:4]).solve(*arguments[4:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.float32, types.int64), generate


@intrinsic
def _decide_rows(typing: Any, state: Any, exact: Any, ones: Any, rank: Any, total: Any, rest: Any, trial: Any) -> Any:
    """`Fitting.decide` of 16 rows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        Fitting(context, builder, *arguments[:4]).decide(*arguments[4:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


def _weigher(bits: int) -> Any:
    """For kernels: `Fitting.weigh` of 16 rows, for codes of so many bits."""

    @intrinsic
    def weigh(typing: Any, weights: Any, own: Any, columns: Any, state: Any, codes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, own, columns, state, codes = arguments
            Fitting(context, builder, state).weigh(weights, own, columns, codes, bits)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return weigh


weigh_2, weigh_3, weigh_4, weigh_6 = map(_weigher, (2, 3, 4, 6))

begin: Any = _begin_rows
keep: Any = _keep_rows
join: Any = _join_rows
solve: Any = _solve_rows
decide: Any = _decide_rows
